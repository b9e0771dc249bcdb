// node-postgres: parameters, named statements, COPY both ways, an error.
import assert from "node:assert";
import { pipeline } from "node:stream/promises";
import { Readable, Writable } from "node:stream";
import pg from "pg";
import { from, to } from "pg-copy-streams";

const client = new pg.Client();
await client.connect();
const sum = await client.query("select $1::int + 1 as sum", [41]);
assert.equal(sum.rows[0].sum, 42);
await client.query("create table node_rows (id int, text text)");
for (let number = 0; number < 100; number++) {
  await client.query({ name: "insert", text: "insert into node_rows values ($1, $2)", values: [number, "x"] });
}
const more = Array.from({ length: 900 }, (_, index) => `${index + 100}\tcopied\n`);
await pipeline(Readable.from(more), client.query(from("copy node_rows from stdin")));
let bytes = 0;
const count = new Writable({ write: (chunk, _, done) => { bytes += chunk.length; done(); } });
await pipeline(client.query(to("copy node_rows to stdout")), count);
assert.ok(bytes > 900 * "copied".length);
await assert.rejects(client.query("select 1 / (id - 5) from node_rows"), { code: "22012" });
await client.end();
console.log("done");
