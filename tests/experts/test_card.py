"""Only what is harmless as a folder is a name; versions are ordered as semver.org says."""

import random

import pytest

from limbeck.errors import ExpertError
from limbeck.experts.card import check_name, check_version, following, precedence

BAD_NAMES = ["", ".", "..", "a/b", "../a", "/a", "A", "-a", ".a", "a b", "a\n", "a\0", "ä", "a" * 65, "a\\b", "~"]
BAD_VERSIONS = ["", "1", "1.0", "1.0.0.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0/..", "1.0.0\n", "٣.0.0"]
BAD_VERSIONS += ["1.0.0-a..b", "1.0.0+", "../1.0.0", "1.0.0-" + "a" * 64, "1" * 12 + ".0.0"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(name):
    with pytest.raises(ExpertError, match="is no name of an expert; allowed are"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "0", "code-helper", "a.b_c-9", "a" * 64])
def test_good_names_pass(name):
    assert check_name(name) == name


@pytest.mark.parametrize("version", BAD_VERSIONS)
def test_bad_versions_are_refused(version):
    with pytest.raises(ExpertError, match="is no version; allowed are"):
        check_version(version)


def test_precedence_is_that_of_semver():
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"]
    ordered += ["1.0.0-rc.1", "1.0.0", "1.0.0+build.1", "1.0.1", "1.2.0", "1.10.0", "2.0.0"]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled, key=precedence) == ordered
    assert all(check_version(version) == version for version in ordered)


def test_the_next_version_is_a_minor_one():
    assert following("1.9.3") == "1.10.0" and following("0.1.0-rc.1+x") == "0.2.0"
