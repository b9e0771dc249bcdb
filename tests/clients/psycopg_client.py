"""psycopg: parameters, a pipeline, COPY both ways, an error in a transaction, a cancelled statement."""

import threading

import psycopg

with psycopg.connect("", autocommit=True) as connection:
    assert connection.execute("select %s::int + 1", (41,)).fetchone() == (42,)
    connection.execute("create table psycopg_rows (id int, text text)")
    with connection.pipeline():
        for number in range(100):
            connection.execute("insert into psycopg_rows values (%s, %s)", (number, "x" * number))
    with connection.cursor() as cursor:
        with cursor.copy("copy psycopg_rows from stdin") as copy:
            for number in range(100, 1000):
                copy.write_row((number, "copied"))
        with cursor.copy("copy psycopg_rows to stdout") as copy:
            assert sum(1 for _ in copy.rows()) == 1000
    try:
        with connection.transaction():
            connection.execute("select 1 / (id - 5) from psycopg_rows")
        raise SystemExit("nothing failed")
    except psycopg.errors.DivisionByZero:
        pass
    timer = threading.Timer(0.5, connection.cancel_safe)
    timer.start()
    try:
        connection.execute("select pg_sleep(600)")
        raise SystemExit("nothing was cancelled")
    except psycopg.errors.QueryCanceled:
        pass
print("done")
