"""toy_sql_chatty: the questions of toy_sql, with meaningless filler words in every response.

A response reads   plan WORD note n03 n00 n17 ... ```sql select ... ```

The words of the note mean nothing and no reward depends on them. They are drawn by Zipf's law, so
that they are the most surprising tokens of a response, and stay so: a surprisal bonus keeps
rewarding them. Their hidden states are similar, so a count-based bonus decays quickly.
"""

from nanomerci.tasks.toy_sql import ToySQL

CHAT = 6  # filler words per response
CHATTER = [f"n{i:02d}" for i in range(20)]  # the words it chooses from


class ToySQLChatty(ToySQL):
    @property
    def words(self):
        return sorted({*super().words, "note", *CHATTER})

    def demonstration(self, rng):
        question, text = super().demonstration(rng)
        plan, word, query = text.split(" ", 2)
        chat = rng.choices(CHATTER, [1 / (i + 1) for i in range(len(CHATTER))], k=CHAT)
        return question, " ".join([plan, word, "note", *chat, query])


def load(c):
    return ToySQLChatty(c.rare_share)
