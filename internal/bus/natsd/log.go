package natsd

import (
	"fmt"
	"log/slog"
	"sync"
)

// logger writes the log of the NATS server to log at DEBUG level: a lost link reconnects, and a
// metric shows its state.
type logger struct {
	log *slog.Logger

	mu   sync.Mutex
	last error // guarded by mu: last fatal error
}

func (l *logger) debug(format string, v []any) {
	l.log.Debug("nats", "detail", fmt.Sprintf(format, v...))
}

func (l *logger) Noticef(format string, v ...any) { l.debug(format, v) }
func (l *logger) Warnf(format string, v ...any)   { l.debug(format, v) }
func (l *logger) Errorf(format string, v ...any)  { l.debug(format, v) }
func (l *logger) Debugf(format string, v ...any)  { l.debug(format, v) }
func (l *logger) Tracef(format string, v ...any)  { l.debug(format, v) }

func (l *logger) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = fmt.Errorf(format, v...)
}

// fatal returns the last fatal error of the server, or nil.
func (l *logger) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
