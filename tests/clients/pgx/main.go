// pgx: parameters, a batch, COPY in, an error, a statement whose context ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, "")
	check(err)
	var sum int
	check(conn.QueryRow(ctx, "select $1::int + 1", 41).Scan(&sum))
	_, err = conn.Exec(ctx, "create table pgx_rows (id int, text text)")
	check(err)
	batch := &pgx.Batch{}
	for number := 0; number < 100; number++ {
		batch.Queue("insert into pgx_rows values ($1, $2)", number, "x")
	}
	check(conn.SendBatch(ctx, batch).Close())
	rows := make([][]any, 900)
	for index := range rows {
		rows[index] = []any{index + 100, "copied"}
	}
	copied, err := conn.CopyFrom(ctx, pgx.Identifier{"pgx_rows"}, []string{"id", "text"}, pgx.CopyFromRows(rows))
	check(err)
	_, err = conn.Exec(ctx, "select 1 / (id - 5) from pgx_rows")
	var failed *pgconn.PgError
	if sum != 42 || copied != 900 || !errors.As(err, &failed) || failed.Code != "22012" {
		check(fmt.Errorf("%d, %d, %v", sum, copied, err))
	}
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if _, err = conn.Exec(short, "select pg_sleep(600)"); err == nil {
		check(errors.New("nothing timed out"))
	}
	fmt.Println("done")
}
