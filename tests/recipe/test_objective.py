"""The recipe's divergences are those of the table: no more, no fewer, with the same parameters."""

from typing import get_args

import pytest

from limbeck.config.schema import describe
from limbeck.losses import DIVERGENCES
from limbeck.recipe import DivergenceSettings, Objective, needs_of
from limbeck.recipe import objective as objectives

KINDS = {section.model_fields["kind"].default: section for section in get_args(DivergenceSettings)}


def test_every_divergence_of_the_table_can_be_asked_for():
    assert tuple(sorted(KINDS)) == tuple(sorted(DIVERGENCES))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_parameters_defaults_and_ranges_are_the_tables(name):
    spec, section = DIVERGENCES[name], KINDS[name]
    fields = {key: info for key, info in section.model_fields.items() if key != "kind"}
    assert set(fields) == set(spec.params)
    for key, param in spec.params.items():
        assert fields[key].default == param.default
        assert f"at least {param.low:g} and at most {param.high:g}" in describe(fields[key])
    assert (section.needs, section.tempered) == (spec.needs, spec.tempered)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_names_its_source(name):
    """The paper's number, where there is one, stands in the docstring that users read."""
    source, text = DIVERGENCES[name].source, KINDS[name].__doc__ or ""
    for word in source.replace(",", " ").split():
        if word[:4].isdigit() and "." in word:
            assert word in text


def test_what_a_jsd_needs():
    assert needs_of(objectives.JSD(beta=0.0)) == "sample"
    assert needs_of(objectives.JSD(beta=1.0)) == needs_of(objectives.ReverseKL()) == "cells"


def objective(**values) -> Objective:
    return Objective.model_validate(values)


def test_numbers_that_change():
    still = objective(temperature=2.0, ce_weight=0.25)
    assert (still.stored_temperature, still.max_temperature, still.max_ce_weight, still.only_ce) == (
        2.0,
        2.0,
        0.25,
        False,
    )
    moving = objective(
        temperature={"kind": "linear", "start": 4.0, "end": 1.0}, ce_weight={"kind": "cosine", "start": 0.0, "end": 1.0}
    )
    assert (moving.stored_temperature, moving.max_temperature, moving.max_ce_weight, moving.only_ce) == (
        1.0,
        4.0,
        1.0,
        False,
    )
    adaptive = objective(temperature={"kind": "adaptive", "certain": 3.0, "unsure": 1.0}, ce_weight=1.0)
    assert (adaptive.max_temperature, adaptive.only_ce) == (3.0, True)
    assert objective(extra_terms=({"divergence": {"kind": "tvd"}, "temperature": 5.0},)).max_temperature == 5.0
