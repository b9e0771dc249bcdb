"""The job in asyncpg, which speaks the protocol itself, with binary parameters and rows."""
import asyncio
import io
import json

import asyncpg


async def work():
    connection = await asyncpg.connect()
    user = await connection.fetchval("select current_user")
    total = await connection.fetchval("select $1::int + $2::int", 40, 2)
    await connection.execute("create temporary table rows (number int, text text)")
    rows = [(number, f"row {number}") for number in range(1000)]
    await connection.copy_records_to_table("rows", records=rows)
    out = io.BytesIO()
    await connection.copy_from_table("rows", output=out)
    copied = out.getvalue().count(b"\n")
    try:
        await connection.execute("select 1 / 0")
        sqlstate = None
    except asyncpg.PostgresError as error:
        sqlstate = error.sqlstate
    # The driver cancels a statement whose task is cancelled, and reads its answer before it goes on.
    try:
        await connection.execute("select pg_sleep(60)", timeout=0.5)
        cancelled = None
    except asyncio.TimeoutError:
        active = await connection.fetchval(
            "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(60)'"
        )
        cancelled = "57014" if active == 0 else "it runs on"
    await connection.close()
    print(json.dumps({
        "client": f"asyncpg {asyncpg.__version__}", "user": user, "sum": total, "copied": copied,
        "sqlstate": sqlstate, "cancelled": cancelled,
    }))


asyncio.run(work())
