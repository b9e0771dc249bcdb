// The job in pgx.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func main() {
	if err := work(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func work(ctx context.Context) error {
	connection, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer connection.Close(ctx)

	var user string
	if err := connection.QueryRow(ctx, "select current_user", pgx.QueryExecModeSimpleProtocol).Scan(&user); err != nil {
		return err
	}
	var sum int
	if err := connection.QueryRow(ctx, "select $1::int + $2::int", 40, 2).Scan(&sum); err != nil {
		return err
	}
	if _, err := connection.Exec(ctx, "create temporary table rows (number int, text text)"); err != nil {
		return err
	}
	rows := make([][]any, 1000)
	for number := range rows {
		rows[number] = []any{number, fmt.Sprintf("row %d", number)}
	}
	if _, err := connection.CopyFrom(ctx, pgx.Identifier{"rows"}, []string{"number", "text"}, pgx.CopyFromRows(rows)); err != nil {
		return err
	}
	var out bytes.Buffer
	if _, err := connection.PgConn().CopyTo(ctx, &out, "copy rows to stdout"); err != nil {
		return err
	}
	_, err = connection.Exec(ctx, "select 1 / 0")
	sqlstate := stateOf(err)

	// CancelRequest on a connection of its own, as the protocol has it.
	time.AfterFunc(500*time.Millisecond, func() { _ = connection.PgConn().CancelRequest(ctx) })
	_, err = connection.Exec(ctx, "select pg_sleep(60)")

	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"client": "pgx " + version(), "user": user, "sum": sum, "copied": bytes.Count(out.Bytes(), []byte("\n")),
		"sqlstate": sqlstate, "cancelled": stateOf(err),
	})
}

func stateOf(err error) any {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		return said.Code
	}
	return fmt.Sprint(err)
}

func version() string {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == "github.com/jackc/pgx/v5" {
			return module.Version
		}
	}
	return "unknown"
}
