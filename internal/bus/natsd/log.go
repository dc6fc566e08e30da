package natsd

import (
	"fmt"
	"log/slog"
	"sync"
)

// logger brings the server's log to ours, at DEBUG: a link that is lost is made
// again, and a metric shows it.
type logger struct {
	log *slog.Logger

	mu   sync.Mutex
	last error // guarded by mu: why the server cannot run
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

// fatal is why the server gave up, or nil.
func (l *logger) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
