"""How TextVQA's evaluation normalises an answer before it is compared. Pure functions."""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,+\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_SPELLINGS = """
    aint ain't, arent aren't, cant can't, couldve could've, couldnt couldn't, couldn'tve couldn't've,
    couldnt've couldn't've, didnt didn't, doesnt doesn't, dont don't, hadnt hadn't, hadnt've hadn't've,
    hadn'tve hadn't've, hasnt hasn't, havent haven't, hed he'd, hed've he'd've, he'dve he'd've, hes he's,
    howd how'd, howll how'll, hows how's, isnt isn't, itd it'd, itd've it'd've, it'dve it'd've, itll it'll,
    maam ma'am, mightnt mightn't, mightnt've mightn't've, mightn'tve mightn't've, mightve might've,
    mustnt mustn't, mustve must've, neednt needn't, notve not've, oclock o'clock, oughtnt oughtn't,
    ow's'at 'ow's'at, 'ows'at 'ow's'at, 'ow'sat 'ow's'at, shant shan't, shed've she'd've, she'dve she'd've,
    shouldve should've, shouldnt shouldn't, shouldnt've shouldn't've, shouldn'tve shouldn't've,
    somebody'd somebodyd, somebodyd've somebody'd've, somebody'dve somebody'd've, somebodyll somebody'll,
    somebodys somebody's, someoned someone'd, someoned've someone'd've, someone'dve someone'd've,
    someonell someone'll, someones someone's, somethingd something'd, somethingd've something'd've,
    something'dve something'd've, somethingll something'll, thats that's, thered there'd,
    thered've there'd've, there'dve there'd've, therere there're, theres there's, theyd they'd,
    theyd've they'd've, they'dve they'd've, theyll they'll, theyre they're, theyve they've, twas 'twas,
    wasnt wasn't, wed've we'd've, we'dve we'd've, weve we've, werent weren't, whatll what'll,
    whatre what're, whats what's, whatve what've, whens when's, whered where'd, wheres where's,
    whereve where've, whod who'd, whod've who'd've, who'dve who'd've, wholl who'll, whos who's,
    whove who've, whyll why'll, whyre why're, whys why's, wont won't, wouldve would've, wouldnt wouldn't,
    wouldnt've wouldn't've, wouldn'tve wouldn't've, yall y'all, yall'll y'all'll, y'allll y'all'll,
    yall'd've y'all'd've, y'alld've y'all'd've, y'all'dve y'all'd've, youd you'd, youd've you'd've,
    you'dve you'd've, youll you'll, youre you're, youve you've
"""
_CONTRACTIONS = {pair.split()[0]: pair.split()[1] for pair in _SPELLINGS.split(",")}
"""As written without an apostrophe → as it is spelt: the evaluation's own table, with its own gaps."""


def vqa_normalise(text: str) -> str:
    """An answer as TextVQA's evaluation compares it: ``"The two dogs!"`` → ``"2 dogs"``.

    In lower case and without articles; numbers up to ten as digits; contractions with their apostrophe, and
    ``'s`` as a word of its own; commas, question marks and full stops removed (a point before a digit stays).
    Other punctuation is removed where it touches a blank anywhere in the text, else replaced by a blank.
    """
    said = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    said = " ".join(_without_punctuation(said.replace("\n", " ").replace("\t", " ").strip()).split())
    numbers = (_NUMBERS.get(word, word) for word in said.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbers if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    removed = _DIGITS_WITH_COMMA.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if touches or removed else " ")
    return _FULL_STOP.sub("", out)
