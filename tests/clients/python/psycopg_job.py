"""The job in psycopg 3, over libpq."""
import json
import threading

import psycopg

with psycopg.connect("", autocommit=True) as connection:
    user = connection.execute("select current_user").fetchone()[0]
    # Prepared at once, without waiting for the fifth execution.
    total = connection.execute("select %s::int + %s::int", (40, 2), prepare=True).fetchone()[0]
    connection.execute("create temporary table rows (number int, text text)")
    with connection.cursor() as cursor:
        with cursor.copy("copy rows from stdin") as copy:
            for number in range(1000):
                copy.write_row((number, f"row {number}"))
        copied = 0
        with cursor.copy("copy rows to stdout") as copy:
            for _ in copy.rows():
                copied += 1
    try:
        connection.execute("select 1 / 0")
        sqlstate = None
    except psycopg.Error as error:
        sqlstate = error.sqlstate
    timer = threading.Timer(0.5, connection.cancel)
    timer.start()
    try:
        connection.execute("select pg_sleep(60)")
        cancelled = None
    except psycopg.Error as error:
        cancelled = error.sqlstate
    timer.join()

print(json.dumps({
    "client": f"psycopg {psycopg.__version__}", "user": user, "sum": total, "copied": copied,
    "sqlstate": sqlstate, "cancelled": cancelled,
}))
