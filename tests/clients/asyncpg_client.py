"""asyncpg: binary parameters, prepared statements, COPY both ways, an error, a statement that times out."""

import asyncio
import io

import asyncpg


async def main():
    connection = await asyncpg.connect()
    assert await connection.fetchval("select $1::int + 1", 41) == 42
    await connection.execute("create table asyncpg_rows (id int, text text)")
    rows = [(number, "x" * number) for number in range(100)]
    await connection.executemany("insert into asyncpg_rows values ($1, $2)", rows)
    more = [(number, "copied") for number in range(100, 1000)]
    await connection.copy_records_to_table("asyncpg_rows", records=more)
    out = io.BytesIO()
    await connection.copy_from_query("select * from asyncpg_rows", output=out)
    assert out.getvalue().count(b"\n") == 1000
    prepared = await connection.prepare("select count(*) from asyncpg_rows where id < $1")
    for bound in (10, 20, 30):
        assert await prepared.fetchval(bound) == bound
    try:
        await connection.fetch("select 1 / (id - 5) from asyncpg_rows")
        raise SystemExit("nothing failed")
    except asyncpg.DivisionByZeroError:
        pass
    try:
        await connection.fetch("select pg_sleep(600)", timeout=0.5)
        raise SystemExit("nothing timed out")
    except asyncio.TimeoutError:
        pass
    assert await connection.fetchval("select 'still here'") == "still here"
    await connection.close()


asyncio.run(main())
print("done")
