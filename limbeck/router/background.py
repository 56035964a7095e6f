"""Prompts of nobody's kind, for experts to be told apart from: what people ask, in many frames, of many things.

Without them a router learns what parts its experts, and takes "how do I ..." for a sign of whoever heard it most. They
are made, not collected: the same on every machine. Those that are an expert's own kind are left out by the fit.
"""

from __future__ import annotations

import hashlib
import itertools

FRAMES = """\
what is {}?|tell me about {}|how does {} work?|how do I find {}?|can you explain {} to a child|who invented {}?
write a short story about {}|give me three facts about {}|what do you think of {}?|is {} worth the money?
why is {} important?|where can I buy {}?|list the pros and cons of {}|translate "{}" into German
summarise the history of {}|compare {} with {other}|I need help with {}|please write an email about {}
what should I know before {}?|draft a plan for {}|how much does {} cost?
what is the difference between {} and {other}?|{}|find me news on {}|is there a link between {} and {other}?
rewrite this: {} and {other}|how long does {} take?|suggest a title for an essay on {}
what are common mistakes with {}?|recommend a book on {}|which country is known for {}?
define {} in one sentence|who is the best known person in {}?|write a poem on {} and {other}
could you check whether {} is allowed?|my friend asked me about {}, what should I say?
how many kinds of {} are there?|give an example of {}|what happens if {} fails?|are there alternatives to {}?
when did {} begin?|plan a weekend around {}
"""
SUBJECTS = """\
the tides|black holes|a sourdough loaf|medieval castles|the stock market|jazz guitar|wind turbines|a marathon
the Roman senate|house plants|electric cars|the offside rule|chess openings|a job interview|mountain bikes
the French Revolution|solar panels|baby sleep|oil painting|inflation|a wedding speech|whales|earthquakes
the northern lights|contract law|copyright|a landlord|a used motorcycle|dog training|the Silk Road|origami
volcanoes|photosynthesis|penguins|the moon landing|opera|board games|a vegetable garden|carpentry|a leaking roof
tax returns|retirement savings|a passport|hotel rooms in Lisbon|train tickets|the Great Wall|pyramids
Shakespeare's sonnets|haiku|grammar|the subjunctive|public speaking|a cover letter|time management|meditation
yoga|swimming|tennis|ice hockey|the Olympic Games|sailing|knots|camping stoves|bird songs|beekeeping|cheese
coffee roasting|green tea|a birthday cake|chilli sauce|vegan food|wine regions|knives|cast iron pans
laundry stains|curtains|the weather tomorrow|hurricanes|snow tyres|traffic in London|bicycle lanes|airports
jet lag|visas|sea sickness|lost luggage|vaccines|headaches|a sprained ankle|allergies|blood pressure|antibiotics
the human heart|bones|nutrition|vitamins|prime numbers|long division|the Pythagorean theorem|probability
compound interest|a system of equations|fractions|geometry|a Python function|sorting a list|regular expressions
databases|a web server|unit tests|version control|a spreadsheet|passwords|phone batteries|printers|a slow laptop
headphones|televisions|video games|robots|satellites|radio waves|bridges|elevators|steel|concrete|glass|plastics
recycling|rain forests|deserts|rivers of Africa|islands in the Pacific|glaciers|elections|parliament
the constitution|human rights|immigration|trade unions|insurance|mortgages|credit scores|bank transfers
philosophy|Stoicism|Buddhism|Norse myths|Greek gods|astrology|dreams|memory|habits|friendship|loneliness|twins
genealogy|fashion|perfume|shoes|hair dye|tattoos|jewellery|sculpture|museums in Vienna|photography|film noir
stand-up comedy|podcasts|the violin|hip hop|folk dance|ballet|circus tricks|magic cards|crosswords|poker odds
lottery tickets|fireworks|kites|trains
"""


def background_prompts(most: int = 2000) -> list[str]:
    """`most` of some eight thousand prompts, those of the lowest hashes."""
    frames = [frame for line in FRAMES.splitlines() for frame in line.split("|")]
    subjects = [subject for line in SUBJECTS.splitlines() for subject in line.split("|")]
    made = {
        frame.format(subject, other=subjects[(number * 7 + at * 13 + 5) % len(subjects)])
        for (number, subject), (at, frame) in itertools.product(enumerate(subjects), enumerate(frames))
    }
    return sorted(made, key=lambda text: hashlib.sha256(text.encode()).digest())[:most]
