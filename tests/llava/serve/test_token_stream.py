"""Text from tokens: nothing shown is ever taken back."""

import itertools

import pytest

from llava.serve.stream import TokenStream


class Bytes:
    """A tokenizer whose tokens are single bytes; 0 is special."""

    eos_token_id = 0

    def convert_ids_to_tokens(self, number):
        return chr(number)

    def decode(self, ids, skip_special_tokens):
        return bytes(number for number in ids if number or not skip_special_tokens).decode(errors="replace")


def run(data, stop=(), interval=1, tokenizer=None):
    told = []
    stream = TokenStream(tokenizer or Bytes(), stop, interval, told.append)
    seen = []
    for number in data:
        seen.append(number)
        stream.update(list(seen))
        if stream.stopped:
            break
    stream.end(seen)
    return told, stream


def test_half_characters_wait_for_their_other_half():
    text = "né 中文 🌟 end"
    told, stream = run(text.encode())
    assert stream.text == text
    assert all(text.startswith(one) for one in told)
    assert "n" in told
    assert "né" in told


def test_a_character_that_never_ends_is_shown_in_the_end():
    told, stream = run("ab🌟".encode()[:-1])
    assert told[-1] == "ab"
    assert stream.text == "ab�"


@pytest.mark.parametrize("stop", ["###", "</s>", "b#", "END"])
def test_a_stop_text_and_what_may_become_one_is_never_shown(stop):
    text = "a#b##c </x>" + stop + "more"
    expected = text[: text.index(stop)]
    told, stream = run(text.encode(), [stop])
    assert (stream.text, stream.stopped, stream.finish(10**6)) == (expected, True, "stop")
    assert all(expected.startswith(one) for one in told)


def test_of_several_stop_texts_the_first_in_the_text_counts():
    assert run(b"one two three", ["three", "two", ""])[1].text == "one "


def test_what_looked_like_a_stop_text_is_shown_in_the_end():
    told, stream = run(b"a ##", ["###"])
    assert told[-1] == "a "
    assert stream.text == "a ##"


def test_special_tokens_are_left_out_and_the_reason_of_the_end_is_told():
    _, stream = run([65, 66, 0])
    assert (stream.text, stream.finish(3)) == ("AB", "stop")
    assert run(b"AB")[1].finish(2) == "length"


def test_news_come_at_the_interval():
    assert run(b"abcdefg", interval=3)[0] == ["abc", "abcdef"]
    assert run(b"abcdefg", ["z"], interval=3)[0] == ["abc", "abcdef"]


def test_it_ends_as_a_decoding_of_everything_does(checkpoint):
    tokenizer = checkpoint.tokenizer
    ids = tokenizer("two cats\n in this image\nhello 中 world").input_ids[1:]
    told, stream = run(ids, tokenizer=tokenizer)
    assert stream.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert told[-1] == stream.text
    assert all(after.startswith(before) for before, after in itertools.pairwise(told))


def test_bytes_that_spoil_the_characters_before_them(checkpoint):
    """A whole character in bytes, then the beginning of another that never ends: all of it is unreadable then."""
    tokenizer = checkpoint.tokenizer
    ids = tokenizer("two 中 cats").input_ids[1:]
    first = next(at for at, name in enumerate(tokenizer.convert_ids_to_tokens(ids)) if name == "<0xE4>")
    spoiled = [*ids[: first + 3], ids[first], *ids[first + 3 :]]
    told, stream = run(spoiled, tokenizer=tokenizer)
    assert stream.text == tokenizer.decode(spoiled, skip_special_tokens=True) != tokenizer.decode(ids)
    assert all(stream.text.startswith(one) for one in told)
