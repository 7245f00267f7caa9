"""Hostile answers. To add one, append it: tests/test_redteam.py grades every one and wants it not right, on time, and without
a trace. MATH: what stands in \\boxed{}, against GOLD. WHOLE: a whole response. SQL: a query, against GOLD_SQL, on SCRIPT.
"""
GOLD = "7"
MATH = [
    # power towers and their disguises
    "9^{9^{9^{9}}}", "9^9^9^9", "9^{9^9}", "{9^9}^{9^9}", "((9^{99})^{99})^{99}", "(9^{999})^{999}", "2^{2^{2^{2^{2^2}}}}",
    "7^{10^{10}}", "10^{10^{100}}", "(9^9)^{(9^9)}", "9^{(9^{(9^9)})}", "9^{9^{9}}-9^{9^{9}}+7", "7+0\\cdot 9^{9^{9}}",
    "1^{9^{9^9}}", "7\\cdot\\frac{9^{9^9}}{9^{9^9}}", "e^{9^{9^{9}}}", "\\sqrt[9^{9^9}]{7}", "2^{-10^{10^{10}}}",
    "9**9**9**9", "(-1)^{9^{9^{9}}}", "x^{99999999}", "(x+1)^{99999}", "(x+y+z)^{9999}", "\\exp(\\exp(\\exp(\\exp(99))))",
    "9^{999}^{999}", "\\pi^{\\pi^{\\pi^{\\pi^{99}}}}", "10^{-10^{9}}", "1e999999999", "7e-999999999",
    "7\\times 10^{999999999}", "7\\times10^{-999999999}", "7E+99999999999",
    # factorials, binomials, sums
    "1000000!", "9999999999!", "((9!)!)!", "9!!!!!!!!", "(9^9)!", "\\binom{10^{9}}{10^{8}}", "\\binom{99999999}{44444444}",
    "\\sum_{k=1}^{10^{12}} k!", "\\prod_{k=1}^{10^9} k", "\\int_0^{\\infty} x^{x^{x}} dx", "\\lim_{n\\to\\infty} n!^{n!}",
    "\\sum_{i=1}^{99999}\\sum_{j=1}^{99999} 1", "\\gamma(10^{10})", "\\Gamma(10^{10})", "\\operatorname{gamma}(10^9)",
    "\\zeta(10^{-99})", "\\gcd(10^{99999},7)", "\\operatorname{factorial}(10^9)", "\\operatorname{primorial}(10^9)",
    # very long numbers and texts
    "7" * 1_000_000, "7." + "0" * 1_000_000, "0" * 100_000 + "7", "7." + "0" * 900 + "1", "1/" + "7" * 5000, "7" * 999,
    "1" + "0" * 990, "\\frac{" + "7" * 400 + "}{" + "1" * 400 + "}", "7+" * 100_000 + "7", "7," * 100_000 + "7",
    "7," * 450 + "7", "7" + " " * 500_000 + "1", "x" * 900, "x+" * 190 + "x", "x_" * 300, "a" * 1_000_000, "-" * 900 + "7",
    "+-+-7" * 100, "\\sqrt{" * 11 + "7" + "}" * 11, "\\overline{" * 50 + "7", "7\\overline{7}",
    "0.\\overline{" + "7" * 900 + "}", "7;" * 400, "7\\cup" * 150 + "7", "7&8\\\\" * 150,
    # deep nesting, unbalanced brackets
    "(" * 500 + "7" + ")" * 500, "[" * 499 + "7" + "]" * 499, "{" * 450 + "7" + "}" * 450, "\\{" * 200 + "7" + "\\}" * 200,
    "(" * 900, ")" * 900 + "7", "((((((((((((((7", "7))))))))", "\\frac{" * 100 + "7" + "}{1}" * 100,
    "\\frac{1}{" * 11 + "7" + "}" * 12, "\\left(" * 100 + "7" + "\\right)" * 100, "|" * 300 + "7" + "|" * 300,
    "\\begin{pmatrix}" * 30 + "7" + "\\end{pmatrix}" * 30, "\\sqrt{\\sqrt{\\sqrt{\\sqrt{\\sqrt{\\sqrt{7^{49}}}}}}}",
    "x^{x^{x^{x^{x^{x^{x^{x^x}}}}}}}}", "a_{b_{c_{d_{e_{f_{g}}}}}}", "\\boxed{",
    # digits of other scripts, look-alikes, invisible characters
    "\u0667", "\uff17", "\u096d", "\u09ed", "\U0001d7d5", "\u2466", "\u2077", "\u2087", "7\u200b0", "\u202e7", "7\u0338",
    "\u0bed", "\u1815", "VII", "\u2166", "seven hundred", "7\x00", "\x007", "7\ud800", "\ufeff8", "\u00b7", "7\u0660",
    "\u0661\u0664/2",
    # Python and sympy through the back door
    "__import__('os').system('touch pwned')", "().__class__.__bases__[0].__subclasses__()", "eval('7')",
    "exec('raise SystemExit')", "open('pwned','w').write('x')", "lambda: 7", "S.One.__class__",
    "Symbol('x').func.__globals__", "sympify('7')", "N('7')", "Integer(7)", "S(7)", "Lambda(x,7)(1)", "exit()", "quit()",
    "breakpoint()", "input()", "print(7)", "globals()['x']", "getattr(x,'y')", "x.__dict__", "\\text{__import__('os')}",
    "\\operatorname{eval}(7)", "\\mathrm{exec}", "{0.__class__}", "%s%s%n%x", "%(x)s", "${7*7}", "{{7*7}}", "#{7*7}",
    "`touch pwned`", "$(touch pwned)", "; touch pwned", "7 if 1 else 8", "[7 for _ in range(10**9)]", "EmptySet", "zoo", "oo",
    "nan", "NaN", "Infinity", "-inf", "\\infty", "S.Reals", "I**2", "E", "\\emptyset", "True", "None", "null",
    # LaTeX that does something
    "\\input{/etc/passwd}", "\\include{secret}", "\\write18{touch pwned}", "\\immediate\\write18{touch pwned}",
    "\\openout1=pwned", "\\def\\x{7}\\x", "\\newcommand{\\a}{\\a}\\a", "\\loop\\iftrue\\repeat", "\\csname input\\endcsname",
    "\\catcode`\\7=0", "\\verb|7|", "\\url{http://localhost/7}", "\\href{file:///etc/passwd}{7}",
    "\\includegraphics{/dev/zero}", "\\usepackage{shellesc}", "\\special{x}", "\\char\"37", "^^37", "\\number7",
    "\\the\\year", "%7", "8%\n7",
    # answers that hedge, or say nothing
    "", " ", "\\text{}", "6, 7", "6 \\text{ or } 7", "\\pm 7", "7 \\text{ or anything else}", "[0, 100]",
    "(-\\infty, \\infty)", "x", "x = x", "n", "7 \\neq 7", "0 = 0", "\\mathbb{R}", "\\{1,2,3,4,5,6,7,8,9\\}", "1,2,3,4,5,6,7",
    "\\approx 7", "7 \\pm 1", "6.99999", "7.00001", "6 < x < 8", "x \\in [6,8]", "x \\ge 7", "7 million", "7x", "7i", "7\\pi",
    "-7", "1/7", "77", "0.7", "7!", "70\\%", "7^2", "\\frac{7}{0}", "0/0", "7/0", "\\text{the answer}", "\\text{see above}",
    "\\log 7", "|7|+1", "7 - 7", "??", "7?8", "7:8", "7\\mod 0", "\\left(7,7\\right)",
]  # fmt: skip
WHOLE = [
    "The answer is 7.", "7", "\\boxed7", "\\boxed 7 ", "boxed{7}", "\\boxed{7", "\\boxed{" * 20_000,
    "\\boxed{8" * 5000 + "}" * 5000, "\\boxed{7}\\boxed{8}", "\\boxed{7} no, \\boxed{8}", "Answer: 8 \\boxed{7",
    "{" * 200_000, "}" * 200_000, "\\" * 200_001, "$" * 100_000, "Answer:" * 50_000, "answer" + " " * 300_000,
    "####" * 50_000, "Answer: 7 or 8", "\\boxed{\\boxed{\\boxed{8}}}7", "\\boxed{}", "", "\x00" * 100_000,
    "\\boxed{" + "{" * 50_000 + "7" + "}" * 50_000 + "}", "\n" * 300_000 + "\\boxed{}", "\\fbox{7}{8}\\fbox{8}", "\\BOXED{7}",
    "\\boxed{7}" * 30_000 + "\\boxed{6}", "\\boxed {\\text{7}}\\boxed{\\text{ }}", "\ud800\\boxed{\udfff}", "```" * 60_000,
    "ANSWER:\n7",
]  # fmt: skip

SCRIPT = """CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL, kind TEXT);
CREATE TABLE sale (item INTEGER REFERENCES item (id), day TEXT, amount INTEGER);
INSERT INTO item VALUES """ + ", ".join(f"({i}, 'item {i}', {i * 1.5}, '{'abc'[i % 3]}')" for i in range(1, 41)) + """;
INSERT INTO sale VALUES """ + ", ".join(f"({i * 7 % 40 + 1}, '2024-01-{i % 28 + 1:02}', {i % 9})" for i in range(120)) + ";"
GOLD_SQL = "SELECT name FROM item WHERE price > 20 AND kind = 'a'"
_ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
_LONG = ("(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 20000) "
         "SELECT group_concat('aaaaaaaaaa', '') FROM c)")
SQL = [
    # never ends, or nearly
    _ENDLESS + "SELECT count(*) FROM c", _ENDLESS + "SELECT x FROM c", _ENDLESS + "SELECT max(x) FROM c",
    _ENDLESS + "SELECT x FROM c ORDER BY 1", _ENDLESS + "SELECT group_concat(x) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM c) SELECT length(x) FROM c",
    "WITH RECURSIVE c(x, y) AS (SELECT 1, 1 UNION SELECT x + 1, y FROM c UNION SELECT x, y + 1 FROM c) SELECT count(*) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT DISTINCT x FROM c",
    "SELECT count(*) FROM " + ", ".join(f"sale s{i}" for i in range(12)),
    "SELECT * FROM " + ", ".join(f"sale s{i}" for i in range(6)),
    "SELECT sum(a.amount * b.amount) FROM sale a CROSS JOIN sale b CROSS JOIN sale c CROSS JOIN sale d CROSS JOIN sale e",
    "SELECT name FROM item WHERE (SELECT count(*) FROM sale a, sale b, sale c, sale d) > 0",
    "SELECT name FROM item ORDER BY (SELECT count(*) FROM sale a, sale b, sale c, sale d)",
    "SELECT DISTINCT a.day || b.day || c.day || d.day FROM sale a, sale b, sale c, sale d",
    "SELECT count(*) FROM sale a JOIN sale b JOIN sale c JOIN sale d JOIN sale e GROUP BY a.day || b.day || c.day",
    # one opcode that outruns the progress handler
    f"SELECT {_LONG} LIKE '{'%a' * 60}%b'", f"SELECT {_LONG} GLOB '{'*a' * 60}*b'", f"SELECT instr({_LONG}, {_LONG} || 'b')",
    f"SELECT length(replace({_LONG}, 'a', {_LONG}))", f"SELECT hex(hex(hex(hex(hex({_LONG})))))",
    f"SELECT quote(quote({_LONG} || {_LONG}))", f"SELECT upper({_LONG}) = lower({_LONG}) FROM sale a, sale b",
    f"SELECT json_extract({_LONG}, '$.a')", f"SELECT trim({_LONG}, 'ab')", f"SELECT ltrim({_LONG} || 'b', {_LONG})",
    "SELECT printf('%.*c', 1000000000, 'x')", "SELECT printf('%1000000000d', 1)", "SELECT printf('%*d', 2147483647, 1)",
    "SELECT format('%.999999999f', 1.0)", "SELECT replace(printf('%.9999999c', 'a'), 'a', 'aaaaaaaaaa')",
    "SELECT substr(printf('%.16000000c', 'x'), 1, 1) FROM sale a, sale b, sale c",
    "SELECT char(" + ", ".join(["65"] * 200) + ")",
    # memory, large results
    "SELECT hex(zeroblob(400000000))", "SELECT zeroblob(1000000000)", "SELECT randomblob(1000000000)",
    "SELECT length(randomblob(99999999))", "SELECT zeroblob(1000000) FROM sale a, sale b",
    "SELECT quote(zeroblob(500000000))", "SELECT CAST(zeroblob(100000000) AS TEXT)",
    "SELECT printf('%.1000000c', 'x') FROM sale", "SELECT printf('%.1000000c', 'x') || a.day FROM sale a, sale b",
    "SELECT group_concat(printf('%.1000000c', 'x')) FROM sale a, sale b", "SELECT a.*, b.*, c.* FROM sale a, sale b, sale c",
    "SELECT json_array(" + ", ".join(["name"] * 120) + ") FROM item", "SELECT name FROM item, sale, sale b, sale c",
    "SELECT max(printf('%.9000000c', 'x') || a.amount) FROM sale a, sale b",
    "SELECT " + ", ".join(["name"] * 600) + " FROM item",
    "SELECT a.name, row_number() OVER (ORDER BY a.name || b.day || c.day) FROM item a, sale b, sale c",
    # writing
    "INSERT INTO item VALUES (99, 'x', 1, 'a')", "UPDATE item SET price = 0", "DELETE FROM item", "DROP TABLE item",
    "DROP TABLE IF EXISTS sale", "CREATE TABLE t (x)", "CREATE TEMP TABLE t AS SELECT 1", "CREATE VIEW v AS SELECT 1",
    "CREATE INDEX i ON item (name)", "CREATE TRIGGER t AFTER INSERT ON item BEGIN SELECT 1; END",
    "ALTER TABLE item RENAME TO things", "REPLACE INTO item VALUES (1, 'x', 1, 'a')", "WITH a AS (SELECT 1) DELETE FROM item",
    "WITH a AS (SELECT 99) INSERT INTO item SELECT *, 'x', 1, 'a' FROM a", "WITH a AS (SELECT 1) UPDATE item SET price = 1",
    "INSERT INTO item SELECT * FROM item RETURNING name", "DELETE FROM item RETURNING name",
    "UPDATE item SET price = 1 RETURNING name", "CREATE VIRTUAL TABLE f USING fts5(x)",
    "CREATE VIRTUAL TABLE f USING fts4(x)", "CREATE VIRTUAL TABLE r USING rtree(id, a, b)", "VACUUM",
    "VACUUM INTO 'pwned.db'", "REINDEX", "ANALYZE", "BEGIN", "BEGIN EXCLUSIVE", "COMMIT", "ROLLBACK", "SAVEPOINT s",
    "RELEASE s", "END TRANSACTION", "EXPLAIN SELECT 1", "EXPLAIN QUERY PLAN SELECT name FROM item",
    # other files, settings
    "ATTACH 'pwned.db' AS p", "ATTACH DATABASE ':memory:' AS p", "ATTACH 'file:pwned.db?mode=rwc' AS p", "DETACH main",
    "PRAGMA writable_schema = 1", "PRAGMA query_only = 0", "PRAGMA journal_mode = WAL", "PRAGMA table_info(item)",
    "PRAGMA database_list", "PRAGMA temp_store_directory = '.'", "PRAGMA hard_heap_limit = 0", "PRAGMA trusted_schema = 1",
    "PRAGMA user_version = 7", "PRAGMA optimize", "SELECT * FROM pragma_database_list",
    "SELECT name FROM pragma_table_info('item')", "SELECT * FROM pragma_function_list",
    "SELECT * FROM pragma_compile_options", "SELECT file FROM pragma_database_list()", "SELECT * FROM pragma_journal_mode",
    "SELECT * FROM dbstat", "SELECT * FROM sqlite_master", "SELECT sql FROM sqlite_schema",
    "SELECT name FROM sqlite_temp_master", "SELECT * FROM sqlite_dbpage", "SELECT * FROM sqlite_stmt",
    "SELECT * FROM bytecode('SELECT 1')", "SELECT * FROM tables_used('SELECT 1')", "SELECT * FROM fts3tokenize",
    "SELECT load_extension('./evil.so')", "SELECT load_extension('/lib/x86_64-linux-gnu/libc.so.6', 'system')",
    "SELECT writefile('pwned', 'x')", "SELECT readfile('/etc/passwd')", "SELECT edit('x')", "SELECT fts3_tokenizer('simple')",
    "SELECT fts3_tokenizer('simple', x'4141414141414141')", "SELECT fts5(NULL)", "SELECT matchinfo(item) FROM item",
    "SELECT optimize(item) FROM item", "SELECT snippet(item) FROM item", "SELECT sqlite_compileoption_get(1)",
    "SELECT sqlite_version()", "SELECT sqlite_source_id()", "SELECT sqlite_log(1, 'x')", "SELECT last_insert_rowid()",
    "SELECT changes()", "SELECT total_changes()", "SELECT random()", "SELECT randomblob(8)",
    "SELECT name FROM item ORDER BY random()", "SELECT name FROM item WHERE random() > 0", "SELECT * FROM json_each('[1,2]')",
    "SELECT * FROM json_tree('[1,[2]]')", "SELECT * FROM generate_series(1, 1000000000)", "SELECT rtreecheck('item')",
    "SELECT geopoly_area(1)", "SELECT * FROM temp.sqlite_master", "SELECT * FROM other.item",
    "SELECT * FROM main.sqlite_sequence", "SELECT * FROM zipfile('x.zip')", "SELECT * FROM fsdir('/')",
    "SELECT * FROM csv('/etc/passwd')", "SELECT name FROM item WHERE name MATCH 'item'", "SELECT name REGEXP 'a' FROM item",
    # more than one statement, hidden words
    "SELECT 1; SELECT 2", "SELECT name FROM item; DROP TABLE item", "SELECT 1; ATTACH 'pwned.db' AS p",
    "; ; SELECT 1; DELETE FROM item", "SELECT 1;;PRAGMA query_only=0", "SELECT 1 -- \n; DELETE FROM item",
    "/* SELECT */ DELETE FROM item", "DE/**/LETE FROM item", "-- SELECT\nDROP TABLE item",
    "SELECT 1 /* ; */; INSERT INTO item VALUES (98, 'x', 1, 'a')", "AT/* */TACH 'pwned.db' AS p",
    "/*! ATTACH 'pwned.db' AS p */ SELECT 1", "SELECT load/**/_extension('x')", "SELECT \"load_extension\"('x')",
    "SELECT [zeroblob](100000000)", "SELECT `randomblob`(8)", "SELECT LoAd_ExTeNsIoN('x')",
    "SELECT 1 UNION SELECT zeroblob(1)", "SELECT 1 WHERE EXISTS (SELECT load_extension('x'))",
    "SELECT 1\x00; DROP TABLE item", "\x00SELECT 1", "SELECT '\x00'", "\ufeffSELECT 1", "SELECT\u00a01", "\uff33ELECT 1",
    "SELECT 1 \u2028; DELETE FROM item", "SELECT '\ud800'",
    # parser trouble
    "SELECT " + "(" * 5000 + "1" + ")" * 5000, "SELECT " + "(" * 150 + "1" + ")" * 150, "SELECT " + "1+" * 9000 + "1",
    "SELECT " + "NOT " * 4000 + "1", "SELECT " + "-" * 9000 + "1",
    "SELECT * FROM " + "(SELECT * FROM " * 400 + "item" + ")" * 400, " UNION ALL ".join(["SELECT 1"] * 600),
    "SELECT " + " || ".join(["name"] * 2000) + " FROM item", "SELECT CASE " + "WHEN 1 THEN 1 " * 1200 + "END",
    "SELECT '" + "a" * 30_000 + "'", "SELECT name FROM item WHERE id IN (" + ", ".join(map(str, range(4000))) + ")",
    "SELECT " + "a." * 5000 + "b", "SELECT 'unterminated", "SELECT \"x", "SELECT /* unterminated", "SELECT ?",
    "SELECT ?1, :a, @b, $c", "SELECT $1", "SELECT {fn now()}", "SELEC name FROM item", "name", "", ";", "--", "*", "SELECT",
    "SELECT FROM", "SELECT * FROM", "WITH", "WITH a AS", "VALUES (1)", "VALUES ('item 15')", "TABLE item", "SHOW TABLES",
    "DESCRIBE item", "COPY item TO 'pwned'", ".read /etc/passwd", ".shell touch pwned", ".output pwned",
    "SELECT * FROM item INTO OUTFILE 'pwned'", "USE main", "CALL f()",
    # wrong, but close or lucky
    "SELECT 1", "SELECT NULL", "SELECT name FROM item", "SELECT name FROM item WHERE 0", "SELECT * FROM item",
    "SELECT name, name FROM item", "SELECT name FROM item WHERE price > 20",
    "SELECT name FROM item WHERE price > 23 AND kind = 'a'", "SELECT id FROM item WHERE kind = 'a'",
    "SELECT upper(name) FROM item WHERE price > 20 AND kind = 'a'", "SELECT count(*) FROM item", "SELECT 'item 15'",
    "SELECT name FROM nowhere", "SELECT nothing FROM item", "SELECT name FROM item WHERE price > 20 AND kind = 'a' LIMIT 3",
    "SELECT name || '' || ' ' FROM item WHERE kind = 'a'",
]  # fmt: skip
FENCES = [                                               # whole responses that hold no query, though they hold GOLD_SQL
    GOLD_SQL, f"```\n{GOLD_SQL}\n```", f"```sql\n{GOLD_SQL}", f"```sqlite\n{GOLD_SQL}\n```",
    f"```sql\n{GOLD_SQL}\n``` ```sql\n```", f"```python\n{GOLD_SQL}\n```", "```sql" * 50_000, "```sql ```" * 50_000,
    "`" * 300_000, "```sql\n```", "```sql\n  \n```", f"```sql\n{GOLD_SQL}\n``` or rather ```sql\nSELECT 1\n```",
    f"```sql\n{GOLD_SQL}; {GOLD_SQL}\n```", f"```sql\n{GOLD_SQL} \x00\n```",
]  # fmt: skip
