from __future__ import annotations

import contextlib
import time
import tracemalloc

import pytest

from ppdl_mq.config import limits
from ppdl_mq.config.plain import toml_of

MOST = limits.MAX_KEY_WORDS


def key(words: list[str], *, joint: str = ".") -> str:
    return joint.join(words)


@pytest.mark.parametrize("word", ["a", '"a.b"', "'='", r'"\".#"', "0", "-"], ids=repr)
@pytest.mark.parametrize("joint", [".", " . ", "\t."], ids=repr)
@pytest.mark.parametrize("form", ["{} = 1", "x = 1\n{} = 1", "[{}]", "[[{}]]", "x = {{ y = 1, {} = 1 }}"])
def test_keys_of_many_words_are_refused(word: str, joint: str, form: str) -> None:
    toml_of(form.format(key([word] * MOST, joint=joint)))
    with pytest.raises(ValueError, match="too many words"):
        toml_of(form.format(key([word] * (MOST + 1), joint=joint)))


@pytest.mark.parametrize(
    "text",
    [
        f"x = [{', '.join(['0.5'] * 500)}]",
        f'x = "{"a." * 500}"',
        f"x = '{'a.' * 500}'",
        f'x = """{"a." * 500}\n"".a."""',
        f"x = '''{'a.' * 500}\n'''",
        f"# {'a.' * 500}\nx = 1",
        "\n".join(f"a.b.c{number} = 1" for number in range(500)),
        f'x = "\\"" # {"a." * 500}',
    ],
    ids=range(8),
)
def test_dots_elsewhere_are_not_counted(text: str) -> None:
    assert toml_of(text)


@pytest.mark.parametrize("piece", ["a.", '"a".', "'.", '".', '"""a.', '\\"', "a", ".", " .", "#."], ids=repr)
def test_a_file_of_the_largest_size_takes_little_time_and_memory(piece: str) -> None:
    text = piece * (limits.MAX_MANIFEST_BYTES // len(piece))
    tracemalloc.start()
    begun = time.process_time()
    with contextlib.suppress(ValueError):  # a comment is TOML, the others are not
        toml_of(text)
    assert time.process_time() - begun < 10
    assert tracemalloc.get_traced_memory()[1] < 100 * len(text)
    tracemalloc.stop()
