"""toy_sql: the questions are what the text says they are, on the real database and with the real
grader.
"""

import random

import pytest

from nanomerci.loop.model import encode, tiny
from nanomerci.tasks import sql, toy_sql


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy_sql.ToySQL(tmp_path_factory.mktemp("toy"))


def test_held_out_questions_are_not_trained_on(task):
    assert len(task.test) == toy_sql.TEST and len(task.train) > 1000
    assert not {p.prompt for p in task.test} & {p.prompt for p in task.train}
    assert (
        task.problems == toy_sql.ToySQL(task.database.rsplit("/", 1)[0]).problems
    )  # the same ones every time


def test_the_robust_idiom_is_always_right_and_the_common_one_fails_on_the_hard_third(task):
    for problem in task.problems[::7]:
        for rare, outcome in ((True, "right"), (False, "wrong" if problem.hard else "right")):
            assert (
                sql.grade(
                    task.database, problem.gold, toy_sql.answer(problem, rare), "spider"
                ).outcome
                == outcome
            ), problem.prompt
    assert abs(sum(p.hard for p in task.problems) / len(task.problems) - 1 / 3) < 0.01


def test_demonstrations_show_the_rare_idiom_rarely_and_conditions_wrong_often(task):
    rng, n = random.Random(0), 4000
    by_prompt = {p.prompt: p for p in task.train}
    pairs = [task.demonstration(rng) for _ in range(n)]
    rare = sum(task.rare(by_prompt[q], a) for q, a in pairs) / n
    exact = (
        sum(
            a in (toy_sql.answer(by_prompt[q], False), toy_sql.answer(by_prompt[q], True))
            for q, a in pairs
        )
        / n
    )
    assert (
        0.009 < rare < 0.031 and abs(exact - (1 - toy_sql.WRONG)) < 0.04
    )  # about five standard deviations


def test_every_word_is_in_the_vocabulary_and_the_longest_answer_fits(task):
    _, tokenizer = tiny(task.words, width=16, layers=1, heads=2)
    for problem in task.problems:
        for text in (problem.prompt, toy_sql.answer(problem, True), toy_sql.answer(problem, False)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
            assert len(ids) < 48
    assert (
        tokenizer.decode(encode(tokenizer, task.train[0].prompt))
        == task.train[0].prompt + " answer:"
    )


def test_what_follows_the_graded_answer_is_noise(task):
    problem = task.train[0]
    text = toy_sql.answer(problem, True)
    assert task.noise(problem, text) == [] and task.noise(problem, "plan plan") == []
    assert task.noise(problem, text + " select city") == [(len(text), len(text) + 12)]
    assert task.noise(problem, "plan ```sql select ```sql select name ``` where") == [(41, 47)]


def test_small_talk_means_nothing_and_its_words_have_a_long_tail(task):
    chatty = toy_sql.ToySQLChatty(task.database.rsplit("/", 1)[0])
    rng, by_prompt, words, said = (
        random.Random(0),
        {p.prompt: p for p in chatty.train},
        set(chatty.words),
        [],
    )
    for question, text in (chatty.demonstration(rng) for _ in range(2000)):
        plan, word, note, *rest = text.split(" ")
        said += rest[: toy_sql.CHAT]
        bare = " ".join([plan, word, *rest[toy_sql.CHAT :]])
        assert (
            note == "note"
            and set(rest[: toy_sql.CHAT]) <= set(toy_sql.CHATTER)
            and set(text.split()) <= words
        )
        assert (
            chatty.rare(by_prompt[question], text) == task.rare(by_prompt[question], bare)
            and len(text.split()) < 55
        )
        if rng.random() < 0.02:
            problem = by_prompt[question]
            assert sql.grade(*chatty.job(problem, text)[1:]) == sql.grade(
                *task.job(problem, bare)[1:]
            )
    share = [said.count(word) / len(said) for word in toy_sql.CHATTER]
    assert share[0] > 0.25 and 0 < share[-1] < 0.025 and sum(share) == pytest.approx(1)
    assert chatty.problems == task.problems
