"""toy_sql: the questions are what the text says they are, on the real database and with the real
grader.
"""

import random

import pytest

from nanomerci.loop.model import encode, tiny
from nanomerci.tasks import sql, toy_sql, toy_sql_chatty


@pytest.fixture(scope="module")
def task():
    return toy_sql.ToySQL()


def test_held_out_questions_are_not_trained_on(task):
    assert len(task.test) == toy_sql.TEST and len(task.train) > 1000
    assert not {p.prompt for p in task.test} & {p.prompt for p in task.train}
    # the same ones every time
    assert task.problems == toy_sql.ToySQL().problems


def test_the_robust_idiom_is_always_right_and_the_common_one_fails_on_the_hard_third(task):
    for problem in task.problems[::7]:
        for rare, outcome in ((True, "right"), (False, "wrong" if problem.hard else "right")):
            text = toy_sql.answer(problem, rare)
            grade = sql.grade(task.database, problem.gold, text, "spider")
            assert grade.outcome == outcome, problem.prompt
    assert abs(sum(p.hard for p in task.problems) / len(task.problems) - 1 / 3) < 0.01


def test_demonstrations_show_the_rare_idiom_rarely_and_conditions_wrong_often(task):
    rng, n = random.Random(0), 4000
    by_prompt = {p.prompt: p for p in task.train}
    pairs = [task.demonstration(rng) for _ in range(n)]
    rare = sum(task.rare(by_prompt[q], a) for q, a in pairs) / n
    exact = sum(
        a in (toy_sql.answer(by_prompt[q], False), toy_sql.answer(by_prompt[q], True))
        for q, a in pairs
    )
    # about five standard deviations
    assert 0.009 < rare < 0.031 and abs(exact / n - (1 - toy_sql.WRONG)) < 0.04


def test_every_word_is_in_the_vocabulary_and_the_longest_answer_fits(task):
    _, tokenizer = tiny(task.words, width=16, layers=1, heads=2)
    for problem in task.problems:
        for text in (problem.prompt, toy_sql.answer(problem, True), toy_sql.answer(problem, False)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
            assert len(ids) < 48
    prompt = task.train[0].prompt
    assert tokenizer.decode(encode(tokenizer, prompt)) == prompt + " answer:"


def test_what_follows_the_graded_answer_is_noise(task):
    problem = task.train[0]
    text = toy_sql.answer(problem, True)
    assert task.noise(problem, text) == [] and task.noise(problem, "plan plan") == []
    assert task.noise(problem, text + " select city") == [(len(text), len(text) + 12)]
    assert task.noise(problem, "plan ```sql select ```sql select name ``` where") == [(41, 47)]


def test_small_talk_means_nothing_and_its_words_have_a_long_tail(task):
    chatty = toy_sql_chatty.ToySQLChatty()
    rng, by_prompt = random.Random(0), {p.prompt: p for p in chatty.train}
    words, said = set(chatty.words), []
    for _ in range(2000):
        question, text = chatty.demonstration(rng)
        problem = by_prompt[question]
        plan, word, note, *rest = text.split(" ")
        chat = rest[: toy_sql_chatty.CHAT]
        said += chat
        bare = " ".join([plan, word, *rest[toy_sql_chatty.CHAT :]])
        assert note == "note" and set(chat) <= set(toy_sql_chatty.CHATTER)
        assert set(text.split()) <= words and len(text.split()) < 55
        assert chatty.rare(problem, text) == task.rare(problem, bare)
        if rng.random() < 0.02:
            grade = sql.grade(*chatty.job(problem, text)[1:])
            assert grade == sql.grade(*task.job(problem, bare)[1:])
    share = [said.count(word) / len(said) for word in toy_sql_chatty.CHATTER]
    assert share[0] > 0.25 and 0 < share[-1] < 0.025 and sum(share) == pytest.approx(1)
    assert chatty.problems == task.problems
