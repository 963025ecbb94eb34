"""Questions that come together are answered together, each gets its own answer, and who left is not waited for."""

from __future__ import annotations

import asyncio

import pytest

from xmodal.search.serve.batches import Batches, TooManyError


def run(answer, ask, **options):
    async def main():
        batches = Batches(answer, **options)
        async with batches.running():
            return await ask(batches)

    return asyncio.run(main())


async def many(batches, count):
    return await asyncio.gather(*(batches.ask(number) for number in range(count)), return_exceptions=True)


def test_questions_that_come_together_are_one_batch():
    seen = []

    async def answer(questions):
        seen.append(list(questions))
        return [question * 10 for question in questions]

    assert run(answer, lambda batches: many(batches, 70), most=32) == [10 * number for number in range(70)]
    assert [len(batch) for batch in seen] == [32, 32, 6]
    assert [question for batch in seen for question in batch] == list(range(70))


def test_what_comes_while_a_batch_is_answered_is_the_next_batch():
    seen = []

    async def answer(questions):
        seen.append(len(questions))
        await asyncio.sleep(0.05)
        return questions

    async def ask(batches):
        first = asyncio.create_task(batches.ask(0))
        await asyncio.sleep(0.02)
        others = [asyncio.create_task(batches.ask(n)) for n in range(1, 6)]
        return await asyncio.gather(first, *others)

    assert run(answer, ask, wait=0.001) == list(range(6))
    assert seen == [1, 5]


def test_an_error_is_that_of_its_question():
    async def answer(questions):
        return [KeyError(question) if question == 1 else question for question in questions]

    answers = run(answer, lambda batches: many(batches, 3))
    assert (answers[0], answers[2]) == (0, 2)
    assert isinstance(answers[1], KeyError)


def test_a_batch_that_fails_fails_and_the_next_does_not():
    calls = []

    async def answer(questions):
        calls.append(questions)
        if len(calls) == 1:
            raise RuntimeError("out of order")
        return questions

    async def ask(batches):
        with pytest.raises(RuntimeError, match="out of order"):
            await batches.ask("a")
        return await batches.ask("b")

    assert run(answer, ask) == "b"


def test_who_left_is_not_answered():
    seen = []

    async def answer(questions):
        seen.extend(questions)
        return questions

    async def ask(batches):
        gone = asyncio.create_task(batches.ask("gone"))
        stays = asyncio.create_task(batches.ask("stays"))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert run(answer, ask, wait=0.02) == "stays"
    assert seen == ["stays"]


def test_too_many_are_refused():
    async def answer(questions):
        await asyncio.sleep(0.01)
        return questions

    answers = run(answer, lambda batches: many(batches, 5), waiting=3)
    assert answers[:3] == [0, 1, 2]
    assert all(isinstance(each, TooManyError) for each in answers[3:])
