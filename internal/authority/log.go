package authority

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Entries in a page of the log: the default, and the most.
const (
	logLimit    = 100
	logMaxLimit = 1000
)

// recordRefusal adds a refused certificate request to the log. It records what the request claims
// only where that has the valid form, and of a flood it records only a part: the metric counts
// all.
func (a *Authority) recordRefusal(ctx context.Context, r api.CertificateRequest, cause error) error {
	problem := api.ProblemOf(cause)
	if !a.limiter.AllowRow() {
		return nil
	}
	now, err := a.clock.Now()
	if err != nil {
		return err
	}
	entry := api.LogEntry{
		Time: now.UTC(), Kind: records.KindRefused, Reason: problem.Reason,
		Detail: (&wire.Refusal{Reason: problem.Reason, Rule: problem.Rule, Got: problem.Got, Want: problem.Want}).Error(),
	}
	if wire.ValidName(r.Task) {
		entry.Task = r.Task
	}
	if wire.ValidName(r.Group) && wire.ValidName(r.Role) {
		entry.Group, entry.Role = r.Group, r.Role
	}
	if _, err := parseSigningKey(r.SigningKey); err == nil {
		entry.Unit = wire.UnitIDOf(r.SigningKey).String()
	}
	id := make([]byte, 16)
	rand.Read(id)
	row, err := a.records.Seal(records.TableLog, id, entry)
	if err != nil {
		return err
	}
	return a.store.RecordRefusal(ctx, store.Entry{Row: row, Task: entry.Task, Unit: entry.Unit})
}

// logPage returns a page of the log.
func (a *Authority) logPage(ctx context.Context, values url.Values) (api.Log, error) {
	before, err := number(values, "before", 0)
	if err != nil {
		return api.Log{}, err
	}
	limit, err := number(values, "limit", logLimit)
	if err != nil {
		return api.Log{}, err
	}
	for _, name := range []string{"task", "unit"} {
		if text := values.Get(name); strings.ContainsRune(text, 0) || !utf8.ValidString(text) { // PostgreSQL cannot store such text
			return api.Log{}, wire.Refuse(wire.BadRequest, "request: "+name, text, "UTF-8 without NUL")
		}
	}
	return a.readLogPage(ctx, store.Query{
		Before: before, Limit: int(min(max(limit, 1), logMaxLimit)), Task: values.Get("task"), Unit: values.Get("unit"),
	})
}

// readLogPage reads a page and checks each row. It reports and skips a damaged row, and a row
// whose content does not match the columns that the query found it by.
func (a *Authority) readLogPage(ctx context.Context, q store.Query) (api.Log, error) {
	rows, err := a.store.ReadLog(ctx, q)
	if err != nil {
		return api.Log{}, err
	}
	page := api.Log{Entries: make([]api.LogEntry, 0, len(rows))}
	for _, r := range rows {
		var entry api.LogEntry
		err := a.records.Open(records.TableLog, r.Row, &entry)
		if err == nil && (q.Task != "" && entry.Task != q.Task || q.Unit != "" && entry.Unit != q.Unit) {
			err = wire.Refuse(wire.StoreForeign, fmt.Sprintf("store: row %x of %s", r.Key, records.TableLog), "found under another task or unit", "its own")
		}
		if err != nil {
			page.Damaged = append(page.Damaged, r.Sequence)
			a.log.Error("a row of the store is damaged and passed over", "table", records.TableLog, "sequence", r.Sequence, "error", err)
			continue
		}
		entry.Sequence = r.Sequence
		page.Entries = append(page.Entries, entry)
	}
	if len(rows) == q.Limit {
		page.Next = rows[len(rows)-1].Sequence
	}
	return page, nil
}

// number reads a query parameter that is a decimal number, 0 or more.
func number(values url.Values, name string, otherwise int64) (int64, error) {
	text := values.Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, wire.Refuse(wire.BadRequest, "request: "+name, text, "a number, 0 or more")
	}
	return int64(n), nil
}
