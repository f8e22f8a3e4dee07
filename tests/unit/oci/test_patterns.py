"""Patterns for repository names: what they match, which are refused, and whether some cover others."""

import re
import string
import time
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.oci.patterns import NamePattern, matches_text
from dockyard.oci.reference import Name


def matches_naively(pattern: Sequence[str], components: Sequence[str]) -> bool:
    """Try every way to match; obvious and slow."""
    if not pattern:
        return not components
    if pattern[0] == "**":
        return any(matches_naively(pattern[1:], components[count:]) for count in range(len(components) + 1))
    expression = ".*".join(map(re.escape, pattern[0].split("*")))
    is_first = bool(components) and re.fullmatch(expression, components[0], re.DOTALL) is not None
    return is_first and matches_naively(pattern[1:], components[1:])


def patterns(*texts: str) -> list[NamePattern]:
    """Parse several patterns."""
    return [NamePattern.parse(text) for text in texts]


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        (
            "docker.io/library/alpine",
            ["docker.io/library/alpine"],
            ["docker.io/library/alpine2", "docker.io/library/alpin", "docker.io/library/alpine/x", "docker.io/alpine"],
        ),
        (
            "docker.io/library/*",
            ["docker.io/library/alpine", "docker.io/library/a.b_c-d"],
            ["docker.io/library", "docker.io/library/a/b", "docker.io/libraryx/a", "ghcr.io/library/a"],
        ),
        (
            "ghcr.io/my-org/**",
            ["ghcr.io/my-org", "ghcr.io/my-org/a", "ghcr.io/my-org/a/b/c"],
            ["ghcr.io/my-org2/a", "ghcr.io/my-orga", "ghcr.io", "ghcr.io/a/my-org/b"],
        ),
        ("**", ["a", "a/b", "ghcr.io/a/b/c"], []),
        ("**/secret", ["secret", "a/secret", "a/b/secret"], ["a/secret/b", "a/secrets", "a/xsecret"]),
        ("**/secret/**", ["secret", "a/secret/b", "secret/b"], ["a/secrets/b"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b", "a/b/b"], ["a/b/x", "b", "a"]),
        ("a/**/b/**/c", ["a/b/c", "a/x/b/y/z/c", "a/b/b/c/c"], ["a/c/b", "a/b", "a/x/c"]),
        ("*", ["a"], ["a/b"]),
        ("*/*", ["a/b"], ["a", "a/b/c"]),
        ("*/**", ["a", "a/b/c"], []),
        ("**/*", ["a", "a/b/c"], []),
        ("*.io/a", ["docker.io/a", "x.io/a"], ["io/a", "docker.io.x/a", "x/y.io/a"]),
        ("a/app-*", ["a/app-1", "a/app-x-y"], ["a/app", "a/xapp-1", "a/app-1/x"]),
        ("a/*-app", ["a/x-app"], ["a/x-apps", "a/app"]),
        ("a/x*y*z", ["a/xyz", "a/x1y2z", "a/xyyz"], ["a/xz", "a/xzy", "a/xy/z"]),
        ("a/aba*aba", ["a/abaaba", "a/aba1aba"], ["a/aba", "a/ababa"]),
        ("a/x.y", ["a/x.y"], ["a/xzy", "a/x-y"]),
    ],
)
def test_a_pattern_matches_whole_components(pattern: str, names: list[str], others: list[str]) -> None:
    """`*` does not match a slash, `**` any number of components, and other characters only themselves."""
    parsed = NamePattern.parse(pattern)

    assert [name for name in names if not parsed.matches(Name.parse(name))] == []
    assert [name for name in others if parsed.matches(Name.parse(name))] == []
    assert str(parsed) == pattern


@pytest.mark.parametrize("name", ["a/../b", "a/./b", "a//b", "a/%2e%2e/b", "a/b/", "/a/b", "a\\b", "a/b\0", "A/b"])
def test_a_name_that_is_not_valid_matches_only_by_its_own_components(name: str) -> None:
    """Nothing in a name is resolved, decoded or folded: `a/b` does not match it."""
    assert not NamePattern.parse("a/b").matches(Name(name))
    with pytest.raises(Exception, match="not a repository name"):
        Name.parse(name)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "write ** for all repositories"),
        ("https://ghcr.io/a", "it begins with a scheme: write ghcr.io/a"),
        ("https://user:secret@ghcr.io/a", "it begins with a scheme: write ghcr.io/a"),
        ("/ghcr.io/a", "it begins with /: write ghcr.io/a"),
        ("//a", "it begins with /: write a"),
        ("ghcr.io/a/", "write ghcr.io/a, or ghcr.io/a/** for all repositories below it"),
        ("ghcr.io//a", "write one / between its parts"),
        ("ghcr.io/a:v1", "a rule is for a repository, with all its tags and digests: write ghcr.io/a"),
        ("ghcr.io/a:*", "write ghcr.io/a"),
        ("ghcr.io/a:v1@sha256:0123", "write ghcr.io/a"),
        ("ghcr.io/a@sha256:0123", "write ghcr.io/a"),
        ("alpine:3.20", "write alpine"),
        ("localhost:5000/a", "write it without a port"),
        ("ghcr.io/My-Org/*", "names have no capital letters: write ghcr.io/my-org/*"),
        ("ghcr.io/a**", "** is the whole text between two /"),
        ("ghcr.io/***", "** is the whole text between two /"),
        ("ghcr.io/a?", "'?' cannot be in a name; the only wildcards are * and **"),
        ("ghcr.io/{a,b}", "',' '{' '}' cannot be in a name"),
        ("ghcr.io/[ab]", "'[' ']' cannot be in a name"),
        ("!ghcr.io/a", "'!' cannot be in a name"),
        ("ghcr.io/a b", "' ' cannot be in a name"),
        ("ghcr.io/\u0430", "'\\u0430' cannot be in a name"),
        ("ghcr.io/-a", "single separators"),
        ("ghcr.io/a-", "single separators"),
        ("ghcr.io/*-", "single separators"),
        ("ghcr.io/../a", "single separators"),
        ("ghcr.io/a..b", "single separators"),
        ("ghcr.io/a___b", "single separators"),
        (f"ghcr.io/{'a' * 250}", "at most 255 characters"),
    ],
)
def test_a_pattern_that_no_name_matches_is_refused(text: str, remedy: str) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match="matches no repository name: ") as caught:
        NamePattern.parse(text)

    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    "text", ["ghcr.io/a--b", "ghcr.io/a__*", "ghcr.io/a.*.b", "*-*", "**", "**/**", "a/*-b", "a_*"]
)
def test_a_pattern_that_a_name_matches_is_accepted(text: str) -> None:
    """Separators beside a wildcard are between letters of a name."""
    NamePattern.parse(text)


@pytest.mark.parametrize(
    ("pattern", "names", "common"),
    [
        ("docker.io/library/*", "docker.io/*/*/**", ["docker.io/library/*"]),
        ("docker.io/*", "docker.io/*/*/**", []),
        ("ghcr.io/**", "docker.io/*/*/**", []),
        ("**", "ghcr.io/*/**", ["ghcr.io/*/**"]),
        ("*.io/**", "ghcr.io/*/**", ["ghcr.io/*/**"]),
        ("*/x", "ghcr.io/*/**", ["ghcr.io/x"]),
        ("**/x", "ghcr.io/*/**", ["ghcr.io/x", "ghcr.io/*/**/x"]),
        ("ghcr.io", "ghcr.io/*/**", []),
        ("ghcr.io", "ghcr.io/**", ["ghcr.io"]),
        ("ghcr.io/a/**", "ghcr.io/a/**", ["ghcr.io/a/**"]),
        ("**", "a", ["a"]),
        ("**/a/**", "a", ["a"]),
        ("b/**", "a", []),
    ],
)
def test_the_names_of_an_upstream_that_match_a_pattern(pattern: str, names: str, common: list[str]) -> None:
    """As patterns."""
    found = NamePattern.parse(pattern).find_within(NamePattern.parse(names))

    assert [str(part) for part in found] == common


@pytest.mark.parametrize(
    ("pattern", "others"),
    [
        ("a/b", ["a/b"]),
        ("a/b", ["x", "a/*"]),
        ("a/*", ["a/*"]),
        ("a/*", ["a/**"]),
        ("a/*", ["**"]),
        ("a/x*", ["a/*"]),
        ("a/x*y", ["a/x*"]),
        ("a/x-*y", ["a/*-*"]),
        ("a/**", ["a/**"]),
        ("a/**/b", ["a/**"]),
        ("a/*/**", ["a/*", "a/*/*/**"]),
        ("a/**", ["a", "a/*", "a/*/*", "a/*/*/*/**"]),
        ("a/**/b/**", ["a/**/b", "a/**/b/*/**"]),
        ("**", ["*", "*/*/**"]),
        ("**", ["*/**"]),
        ("a/**/*", ["a/*/**"]),
    ],
)
def test_a_pattern_is_covered_by_one_other_or_by_several_together(pattern: str, others: list[str]) -> None:
    """Each name that it matches is matched by one of the others."""
    assert NamePattern.parse(pattern).is_covered_by(patterns(*others))


@pytest.mark.parametrize(
    ("pattern", "others"),
    [
        ("a/b", []),
        ("a/b", ["a/c", "b/**"]),
        ("a/*", ["a/b"]),
        ("a/*", ["a/a*", "a/b*", "a/c*"]),
        ("a/**", ["a/*"]),
        ("a/**", ["a/*/**"]),
        ("a/**", ["a", "a/*", "a/*/*/*/**"]),
        ("**", ["docker.io/**", "ghcr.io/**"]),
        ("a/*x*", ["a/x*", "a/*x"]),
        ("a/*-*", ["a/x-*"]),
        ("a/**/b/**", ["a/**/b", "a/**/b/*"]),
        ("a/**/b/**", ["a/b/**", "a/**/b"]),
    ],
)
def test_a_pattern_with_names_that_no_other_matches_is_not_covered(pattern: str, others: list[str]) -> None:
    """One name is enough."""
    assert not NamePattern.parse(pattern).is_covered_by(patterns(*others))


def test_too_many_combinations_are_not_tried() -> None:
    """The pattern is covered, and nothing is claimed about it."""
    pattern = NamePattern.parse("/".join(["**"] * 9 + ["a"]))

    assert not pattern.is_covered_by(patterns("*/**", "**/*/*/*/**"))


COMPONENTS = st.sampled_from(["**", "*", "a", "b", "a*", "*b", "a*b", "*a*"])
PATTERNS = st.lists(COMPONENTS, min_size=1, max_size=4).map(tuple).map(NamePattern)
TEXTS = ["".join(letters) for size in (1, 2) for letters in product("abz", repeat=size)] + ["azb", "zaz"]


@given(PATTERNS, st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6))
def test_patterns_match_as_an_obvious_matcher_does(pattern: NamePattern, components: list[str]) -> None:
    """Also with several wildcards, and with text that occurs several times."""
    assert pattern.matches(Name("/".join(components))) == matches_naively(pattern.components, components)


@given(PATTERNS, st.lists(PATTERNS, max_size=4))
def test_a_covered_pattern_has_no_name_that_the_others_do_not_match(
    pattern: NamePattern, others: list[NamePattern]
) -> None:
    """In all names of up to three components; and a pattern that is not covered has such a name of up to nine."""
    texts = ["a", "b", "z", "ab", "azb", "az", "zb", "zaz"]
    short = (names for size in (1, 2, 3) for names in product(texts, repeat=size))
    counterexamples = (
        names
        for names in short
        if matches_naively(pattern.components, names)
        and not any(matches_naively(other.components, names) for other in others)
    )
    if pattern.is_covered_by(others):
        assert next(counterexamples, None) is None
    else:
        assert any(
            pattern.matches(Name("/".join(names))) and not any(other.matches(Name("/".join(names))) for other in others)
            for names in find_candidates(pattern)
        )


def find_candidates(pattern: NamePattern) -> list[tuple[str, ...]]:
    """Names that match a pattern, with the letter z, which is in no pattern here, for each wildcard."""
    counts = product(range(7), repeat=pattern.components.count("**"))
    found = []
    for chosen in counts:
        remaining = iter(chosen)
        names: list[str] = []
        for component in pattern.components:
            names += ["z"] * next(remaining) if component == "**" else [component.replace("*", "z")]
        found.append(tuple(names))
    return [names for names in found if names]


@given(PATTERNS, st.sampled_from(["a/**", "a/*/**", "a/b/*/*/**", "b/*"]).map(NamePattern.parse))
def test_the_common_names_are_those_that_match_both(pattern: NamePattern, names: NamePattern) -> None:
    """For all names of up to four components."""
    common = list(pattern.find_within(names))
    for components in (found for size in (1, 2, 3, 4) for found in product(["a", "b", "zb"], repeat=size)):
        is_common = pattern.matches_components(components) and names.matches_components(components)
        assert any(part.matches_components(components) for part in common) == is_common


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_texts_match_as_a_regular_expression_does(pattern: str, text: str) -> None:
    """`*` is `.*`."""
    assert matches_text(pattern, text) == bool(re.fullmatch(pattern.replace("*", ".*"), text))


def test_a_long_name_is_matched_in_little_time() -> None:
    """Wildcards do not multiply the time: with backtracking, this would take years."""
    name = Name.parse("/".join(["a" * 63] * 3) + "/" + "/".join("a" * 30))
    pattern = NamePattern.parse("/".join([*["**", f"*{'a*' * 20}b"] * 4]))

    started = time.process_time()
    assert not pattern.matches(name)
    assert time.process_time() - started < 1


def test_all_letters_in_patterns_are_no_false_cover() -> None:
    """`*a*`, `*b*` and so on match every component together; nothing is claimed about that."""
    others = patterns(*(f"*{letter}*" for letter in string.ascii_lowercase + string.digits))

    assert not NamePattern.parse("*").is_covered_by(others)
