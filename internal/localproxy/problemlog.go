package localproxy

import (
	"log/slog"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Bounds of the log of problems: a program, or a page in a browser, may send refused requests
// without end. The reason of a response may be any text of its sender, so the number of reasons is
// bounded too: those above it share a line.
const (
	logInterval = time.Second
	maxReasons  = 64
)

// problemLog logs problems, for each reason at most one a second, with the number of those that it
// skipped since the line before. The metrics count all. It is safe for concurrent use.
type problemLog struct {
	log *slog.Logger

	mu    sync.Mutex // guards lines
	lines map[wire.Reason]logLine
}

// logLine is the newest line of a reason.
type logLine struct {
	at      time.Time
	skipped int // problems since
}

func newProblemLog(log *slog.Logger) *problemLog {
	return &problemLog{log: log, lines: make(map[wire.Reason]logLine)}
}

// logProblem logs a problem that occurred at a time, without the request's path, fields and content,
// and with more attributes.
func (l *problemLog) logProblem(message string, p *problem, at time.Time, more ...any) {
	skipped, ok := l.admits(p.Reason, at)
	if !ok {
		return
	}
	l.log.With("reason", p.Reason, "rule", p.Rule, "got", p.Got, "want", p.Want, "skipped", skipped).Warn(message, more...)
}

// admits reports whether a reason may have a line at a time, and how many problems had none since its
// last one.
func (l *problemLog) admits(reason wire.Reason, at time.Time) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line, known := l.lines[reason]
	if !known && len(l.lines) >= maxReasons {
		reason = ""
		line, known = l.lines[reason]
	}
	if known && at.Sub(line.at) < logInterval {
		line.skipped++
		l.lines[reason] = line
		return 0, false
	}
	l.lines[reason] = logLine{at: at}
	return line.skipped, true
}
