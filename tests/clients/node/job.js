// The job in node-postgres.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import pg from "pg";
import { from as copyFrom, to as copyTo } from "pg-copy-streams";

const { env } = process;
const { version } = createRequire(import.meta.url)("pg/package.json");
// It knows none of the PGSSL variables but the mode.
const ssl = env.IAP_KEY
  ? {
      ca: readFileSync(env.IAP_CA),
      cert: readFileSync(env.IAP_CERT),
      key: readFileSync(env.IAP_KEY),
      servername: env.IAP_SERVER_NAME,
    }
  : false;
const client = new pg.Client({ host: env.IAP_HOST, port: Number(env.IAP_PORT), ssl });
await client.connect();

const user = (await client.query("select current_user")).rows[0].current_user;
const sum = (await client.query({ name: "sum", text: "select $1::int + $2::int as sum", values: [40, 2] })).rows[0].sum;

await client.query("create temporary table rows (number int, text text)");
const lines = Array.from({ length: 1000 }, (_, number) => `${number}\trow ${number}\n`);
await pipeline(Readable.from(lines), client.query(copyFrom("copy rows from stdin")));
let copied = 0;
for await (const chunk of client.query(copyTo("copy rows to stdout"))) {
  copied += chunk.toString().split("\n").length - 1;
}

const failureOf = (query) => query.then(() => null, (error) => error.code);
const sqlstate = await failureOf(client.query("select 1 / 0"));

// node-postgres has no call for it: another connection asks the server, as its users do.
const sleeping = failureOf(client.query("select pg_sleep(60)"));
const other = new pg.Client({ host: env.IAP_HOST, port: Number(env.IAP_PORT), ssl });
await other.connect();
await other.query("select pg_cancel_backend(pid) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'");
await other.end();
const cancelled = await sleeping;

await client.end();
console.log(JSON.stringify({ client: `node-postgres ${version}`, user, sum, copied, sqlstate, cancelled }));
