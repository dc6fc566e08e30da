package store

import (
	"context"
	"errors"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// inPostgres is a database of a PostgreSQL server, in the first schema of its search path. As in
// SQLite, every writing transaction takes one lock when it begins: what it reads stays unchanged
// until it commits, because writers of all processes on all machines wait for the lock.
var inPostgres = engine{
	name: "PostgreSQL",
	begin: func(ctx context.Context, c *session) error { // one message with two statements, which cannot be prepared
		_, err := c.ExecContext(ctx, `BEGIN; SELECT pg_advisory_xact_lock(hashtext('cohort'), hashtext(current_schema()))`)
		return err
	},
	tables:  `SELECT count(*), count(*) FILTER (WHERE table_name = 'cohort_schema') FROM information_schema.tables WHERE table_schema = current_schema()`,
	durable: []string{"fsync", "full_page_writes"},
	migrations: []string{`
CREATE TABLE cohort_schema (version INTEGER NOT NULL);
CREATE TABLE root ("only" INTEGER PRIMARY KEY CHECK ("only" = 1), key BYTEA NOT NULL, content BYTEA NOT NULL, mac BYTEA NOT NULL);
CREATE TABLE history (step BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, head BYTEA NOT NULL UNIQUE, content BYTEA NOT NULL, mac BYTEA NOT NULL);
CREATE TABLE proposals (digest BYTEA PRIMARY KEY, content BYTEA NOT NULL, mac BYTEA NOT NULL);
CREATE TABLE log (
	sequence BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	id BYTEA NOT NULL UNIQUE,
	kind TEXT NOT NULL CHECK (kind IN ('issued', 'refused')),
	task TEXT NOT NULL,
	unit TEXT NOT NULL,
	serial TEXT NOT NULL,
	certificate BYTEA NOT NULL,
	content BYTEA NOT NULL,
	mac BYTEA NOT NULL
);
CREATE INDEX log_serial ON log (serial) WHERE kind = 'issued';
CREATE INDEX log_task ON log (task, sequence);
CREATE INDEX log_unit ON log (unit, sequence);
CREATE INDEX log_refused ON log (sequence) WHERE kind = 'refused';
INSERT INTO cohort_schema VALUES (1);
`, `
CREATE TABLE backup ("only" INTEGER PRIMARY KEY CHECK ("only" = 1), key BYTEA NOT NULL, content BYTEA NOT NULL, mac BYTEA NOT NULL);
CREATE TABLE lease (name BYTEA PRIMARY KEY, content BYTEA NOT NULL, mac BYTEA NOT NULL);
CREATE TABLE collateral (name TEXT PRIMARY KEY, content BYTEA NOT NULL, mac BYTEA NOT NULL, chip INTEGER NOT NULL, kept BIGINT NOT NULL);
CREATE INDEX collateral_kept ON collateral (chip, kept);
CREATE TABLE forks (key BYTEA PRIMARY KEY, content BYTEA NOT NULL, mac BYTEA NOT NULL);
CREATE TABLE groups (roster BYTEA PRIMARY KEY, content BYTEA NOT NULL, mac BYTEA NOT NULL);
CREATE TABLE places (unit TEXT PRIMARY KEY, task TEXT NOT NULL, until BIGINT NOT NULL, "left" INTEGER NOT NULL, content BYTEA NOT NULL, mac BYTEA NOT NULL);
CREATE INDEX places_task ON places (task, until, unit) WHERE "left" = 0;
`},
}

// connectWait bounds the wait for a server, if the address does not set it lower.
const connectWait = 5 * time.Second

// openServer opens a database of a server. Each connection sets what the store's promises need,
// whatever the server's own settings: a commit waits for the disk, and a process that died or
// hangs keeps the lock for seconds only.
func openServer(dsn string) (*Store, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil { // err repeats the address, which may contain a password
		return nil, wire.Refuse(wire.BadRequest, "store: address", "an address that does not parse", "postgres://USER@HOST/DATABASE")
	}
	if config.ConnectTimeout == 0 || config.ConnectTimeout > connectWait {
		config.ConnectTimeout = connectWait
	}
	for name, value := range map[string]string{
		"application_name": "cohort", "synchronous_commit": "on", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "5s",
	} {
		config.RuntimeParams[name] = value
	}
	reading := config.Copy()
	reading.RuntimeParams["default_transaction_read_only"] = "on"
	return newStore(inPostgres, stdlib.OpenDB(*reading), stdlib.OpenDB(*config)), nil
}

// sqlState returns the SQLSTATE of a PostgreSQL error, empty for other errors.
func sqlState(err error) string {
	var response *pgconn.PgError
	if errors.As(err, &response) {
		return response.Code
	}
	return ""
}
