package frame

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
	ExitDone        = 0 // done, or trusted
	ExitRefused     = 1 // refused, or not trusted
	ExitUsage       = 2
	ExitUnreachable = 3
	ExitInternal    = 4
	ExitHTTP        = 5 // `request --fail` with a status of 400 or more
)

// Codes of the command line, beside the reasons of package wire.
const (
	CodeUsage       = "usage"
	CodeFile        = "file"
	CodeUnreachable = "unreachable"
	CodePortTaken   = "port-taken"
	CodeInUse       = "in-use"
	codeNoTEE       = "no-tee"
	CodeNotTrusted  = "not-trusted"
	CodeHTTP        = "http-status"
	CodeCheckFailed = "check-failed"
	CodeProgram     = "program-ended"
	CodeUnbound     = "not-bound"
	CodeInterrupted = "interrupted"
	CodeInternal    = string(wire.Internal)
)

// Fault is an error with its stable code. Exit code and hint follow from the
// code ([Explanations]) unless the fault brings a hint of its own.
type Fault struct {
	Code  string
	Cause error
	Hint  string
}

func (f *Fault) Error() string { return f.Cause.Error() }

func (f *Fault) Unwrap() error { return f.Cause }

// Usage is a fault of the caller's.
func Usage(format string, args ...any) error {
	return &Fault{Code: CodeUsage, Cause: fmt.Errorf(format, args...)}
}

// unreachable lists errors of the other side not being there.
var unreachable = []error{
	context.DeadlineExceeded, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH,
	syscall.ENETUNREACH, io.ErrUnexpectedEOF, io.EOF,
}

// Classify finds the code of an error. What the checks refused keeps its reason.
func Classify(err error) *Fault {
	var f *Fault
	var refusal *wire.Refusal
	switch {
	case errors.As(err, &f):
		return &Fault{Code: f.Code, Cause: err, Hint: f.Hint}
	case errors.As(err, &refusal):
		return &Fault{Code: string(refusal.Reason), Cause: err}
	case errors.Is(err, context.Canceled):
		return &Fault{Code: CodeInterrupted, Cause: err}
	case errors.Is(err, syscall.EADDRINUSE):
		return &Fault{Code: CodePortTaken, Cause: err}
	case notTrusted(err):
		return &Fault{Code: CodeNotTrusted, Cause: err}
	case isUnreachable(err):
		return &Fault{Code: CodeUnreachable, Cause: err}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrExist), errors.Is(err, syscall.EISDIR):
		return &Fault{Code: CodeFile, Cause: err}
	}
	return &Fault{Code: CodeInternal, Cause: err}
}

// notTrusted reports whether TLS refused the other side, or was refused by it.
func notTrusted(err error) bool {
	var verification *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	return errors.As(err, &verification) || errors.As(err, &unknown) || errors.As(err, &name) || IsAlert(err)
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

// ReportError writes an error to stderr and returns its exit code.
func (a *App) ReportError(command string, err error) int {
	var reported exitStatus
	if errors.As(err, &reported) {
		return int(reported)
	}
	f := Classify(err)
	known := Explain(f.Code)
	t := message{Code: f.Code, Exit: known.Exit, Error: command + ": " + ExitWords[known.Exit], Cause: f.Cause.Error(), Hint: f.Hint}
	if t.Hint == "" {
		t.Hint = known.Hint
	}
	var refusal *wire.Refusal
	if errors.As(err, &refusal) {
		t.Rule, t.Got, t.Want = refusal.Rule, refusal.Got, refusal.Want
	}
	if a.Output == "json" {
		if b, err := WithSchema("error", t); err == nil {
			_, _ = a.Stderr.Write(b)
		}
		return t.Exit
	}
	a.Notef("error: %s [%s]\ncause: %s\nhint: %s", t.Error, t.Code, t.Cause, t.Hint)
	return t.Exit
}

// IsAlert reports whether the other side sent a TLS alert.
func IsAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// exitStatus is the exit code of a program that has printed its error itself.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
