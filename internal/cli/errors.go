package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Exit codes of every command.
const (
	exitDone        = 0 // done, or trusted
	exitRefused     = 1 // refused, or not trusted
	exitUsage       = 2
	exitUnreachable = 3
	exitInternal    = 4
	exitHTTP        = 5 // `request --fail` with a status of 400 or more
)

// Codes of the command line, beside the reasons of package wire.
const (
	codeUsage       = "usage"
	codeFile        = "file"
	codeUnreachable = "unreachable"
	codePortTaken   = "port-taken"
	codeInUse       = "in-use"
	codeNoTEE       = "no-tee"
	codeNotTrusted  = "not-trusted"
	codeHTTP        = "http-status"
	codeCheckFailed = "check-failed"
	codeProgram     = "program-ended"
	codeUnbound     = "not-bound"
	codeInterrupted = "interrupted"
	codeInternal    = string(wire.Internal)
)

// fault is an error with its stable code. Exit code and hint follow from the
// code ([explanations]) unless the fault brings a hint of its own.
type fault struct {
	code  string
	cause error
	hint  string
}

func (f *fault) Error() string { return f.cause.Error() }
func (f *fault) Unwrap() error { return f.cause }

// usage is a fault of the caller's.
func usage(format string, args ...any) error {
	return &fault{code: codeUsage, cause: fmt.Errorf(format, args...)}
}

// unreachable lists errors of the other side not being there.
var unreachable = []error{
	context.DeadlineExceeded, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH,
	syscall.ENETUNREACH, io.ErrUnexpectedEOF, io.EOF,
}

// classify gives any error its code. What the checks refused keeps its reason.
func classify(err error) *fault {
	var f *fault
	var refusal *wire.Refusal
	switch {
	case errors.As(err, &f):
		return &fault{code: f.code, cause: err, hint: f.hint}
	case errors.As(err, &refusal):
		return &fault{code: string(refusal.Reason), cause: err}
	case errors.Is(err, context.Canceled):
		return &fault{code: codeInterrupted, cause: err}
	case errors.Is(err, syscall.EADDRINUSE):
		return &fault{code: codePortTaken, cause: err}
	case notTrusted(err):
		return &fault{code: codeNotTrusted, cause: err}
	case isUnreachable(err):
		return &fault{code: codeUnreachable, cause: err}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrExist), errors.Is(err, syscall.EISDIR):
		return &fault{code: codeFile, cause: err}
	}
	return &fault{code: codeInternal, cause: err}
}

// notTrusted reports whether TLS refused the other side, or was refused by it.
func notTrusted(err error) bool {
	var verification *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	return errors.As(err, &verification) || errors.As(err, &unknown) || errors.As(err, &name) || isAlert(err)
}

func isUnreachable(err error) bool {
	for _, target := range unreachable {
		if errors.Is(err, target) {
			return true
		}
	}
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) || errors.As(err, &dns)
}

// message is an error as people and programs read it.
type message struct {
	Code  string `json:"code"`
	Exit  int    `json:"exit"`
	Error string `json:"error"`
	Cause string `json:"cause"`
	Rule  string `json:"rule,omitempty"`
	Got   string `json:"got,omitempty"`
	Want  string `json:"want,omitempty"`
	Hint  string `json:"hint"`
}

// tell writes an error to stderr and gives its exit code.
func (a *app) tell(command string, err error) int {
	var told exitStatus
	if errors.As(err, &told) {
		return int(told)
	}
	f := classify(err)
	known := explain(f.code)
	t := message{Code: f.code, Exit: known.exit, Error: command + ": " + exitWords[known.exit], Cause: f.cause.Error(), Hint: f.hint}
	if t.Hint == "" {
		t.Hint = known.hint
	}
	var refusal *wire.Refusal
	if errors.As(err, &refusal) {
		t.Rule, t.Got, t.Want = refusal.Rule, refusal.Got, refusal.Want
	}
	if a.output == "json" {
		if b, err := withSchema("error", t); err == nil {
			_, _ = a.talk.Write(b)
		}
		return t.Exit
	}
	a.say("error: %s [%s]\ncause: %s\nhint: %s", t.Error, t.Code, t.Cause, t.Hint)
	return t.Exit
}

// isAlert reports whether the other side sent a TLS alert.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
