package natsd

import (
	"fmt"
	"log/slog"
	"sync"
)

// logger tells the server's words to ours. Errors are told at DEBUG, because
// most of them are broken handshakes of strangers.
type logger struct {
	log *slog.Logger

	mu   sync.Mutex
	last error // guarded by mu: why the server cannot run
}

func (l *logger) debug(format string, v []any) {
	l.log.Debug("bus", "detail", fmt.Sprintf(format, v...))
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
