package clientcmd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// upstream is the way of a proxy to the cluster: a session, one-offs, or TLS.
type upstream struct {
	through http.RoundTripper
	trust   func() *client.Trust
	close   func(context.Context)
	session func(context.Context) (client.Session, error) // nil without sessions

	serves service               // what the pins select
	opened client.Session        // the first session
	fault  atomic.Pointer[error] // why no session is open, as maintain found
}

// openUpstream checks the cluster and opens the way to it.
func (f *proxyFlags) openUpstream(ctx context.Context, a *frame.App) (*upstream, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	f.pins.Gateway = f.session.gateway
	t, err := authorityclient.Trust(ctx, a, f.pins)
	if err != nil {
		return nil, err
	}
	u, err := f.connect(ctx, t)
	if err == nil {
		u.serves = serviceOf(t)
	}
	return u, err
}

// connect opens the way to the cluster under trust that was just fetched.
func (f *proxyFlags) connect(ctx context.Context, t *client.Trust) (*upstream, error) {
	switch {
	case f.direct:
		return f.openDirect(ctx, t)
	case f.oneOff:
		var err error
		config := client.OneOffConfig{Trust: t, Gateway: f.session.gateway.URL}
		if config.CA, err = f.session.gateway.CertPool(); err != nil {
			return nil, err
		}
		o, err := client.NewOneOff(ctx, config)
		if err != nil {
			return nil, err
		}
		return &upstream{through: o, trust: o.Trust, close: func(context.Context) { o.Close() }}, nil
	}
	c, err := f.session.openSession(ctx, client.OpenConfig{Trust: t, Receipts: f.receipts != ""})
	if err != nil {
		return nil, err
	}
	u := &upstream{through: c, trust: c.Trust, session: c.Session, close: func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, closeTime)
		defer cancel()
		c.Close(ctx)
	}}
	if u.opened, err = c.Session(ctx); err != nil {
		u.close(ctx)
		return nil, err
	}
	return u, nil
}

// openDirect checks the unit at the first address that responds.
func (f *proxyFlags) openDirect(ctx context.Context, t *client.Trust) (*upstream, error) {
	if f.name == "" {
		f.name = serviceOf(t).firstHost(t) // the client keeps its server name
	}
	if len(f.addresses) == 0 {
		f.addresses = []string{net.JoinHostPort(f.name, "443")}
	}
	config := client.Config{Trust: t, ServerName: f.name, Addresses: f.addresses}
	var err error
	for _, address := range f.addresses {
		if _, err = client.Verify(ctx, address, config); !errors.Is(err, client.ErrUnreachable) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	c, err := client.New(config)
	if err != nil {
		return nil, err
	}
	return &upstream{through: c, trust: c.Trust, close: func(context.Context) { c.Close() }}, nil
}

// service is the task or group that the pins select, of which one name is empty.
type service struct{ task, group string }

// serviceOf returns the service of trust that was just fetched, which has an identity.
func serviceOf(t *client.Trust) service {
	first := t.Identities()[0]
	return service{first.Task, first.Group}
}

// firstHost returns the first DNS name that the policy of t gives the service, or, if there is
// none, the service's own name.
func (s service) firstHost(t *client.Trust) string {
	hosts := t.Policy().Document().Hosts(s.task, s.group)
	if len(hosts) > 1 {
		return hosts[1]
	}
	return s.task + s.group
}

// hostOf returns a function of the host of requests inside: name, or the first host under the
// newest trust. It refuses a name that the policy does not give the service.
func (u *upstream) hostOf(name string) (func() string, error) {
	s := u.serves
	if name == "" {
		return func() string { return s.firstHost(u.trust()) }, nil
	}
	if doc := u.trust().Policy().Document(); !doc.Serves(s.task, s.group, name) {
		return nil, wire.Refuse(wire.WrongName, "--name", name, doc.Hosts(s.task, s.group))
	}
	return func() string { return name }, nil
}

// maintain keeps a session open while no program sends requests, and remembers the newest policy
// for the next start, until ctx is done.
func (u *upstream) maintain(ctx context.Context, a *frame.App, p authorityclient.Pins) {
	known := u.trust().Policy().PolicyHead()
	for retry.Sleep(ctx, keepTime) == nil {
		if u.session != nil {
			_, err := u.session(ctx)
			u.recordSession(ctx, a, err)
		}
		t := u.trust()
		if t.Policy().PolicyHead() == known {
			continue
		}
		if err := authorityclient.Remember(a, p, t.State()); err != nil {
			a.Log.Warn("remembering the newest policy seen", "cause", err)
			continue
		}
		known = t.Policy().PolicyHead()
	}
}

// recordSession records whether a session is open, and logs the change.
func (u *upstream) recordSession(ctx context.Context, a *frame.App, err error) {
	before := u.fault.Load()
	switch {
	case err == nil:
		if u.fault.Store(nil); before != nil {
			a.Log.Info("a session is open again")
		}
	case ctx.Err() == nil:
		if u.fault.Store(&err); before == nil {
			a.Log.Warn("no session is open", "reason", string(wire.ReasonOf(err)), "cause", err)
		}
	}
}

// ready reports why a request would fail now.
func (u *upstream) ready() error {
	if err := u.fault.Load(); err != nil {
		return *err
	}
	return nil
}

// proxyView is what the command prints once programs can send requests.
type proxyView struct {
	URL     string       `json:"url"` // the base URL for programs, or unix:PATH
	Host    string       `json:"host"`
	Trust   trustView    `json:"trust"`
	Session *sessionView `json:"session,omitempty"`
}

func (u *upstream) startView(url, host string) proxyView {
	v := proxyView{URL: url, Host: host, Trust: viewTrust(u.trust())}
	if u.session != nil {
		s := viewSession(u.opened)
		v.Session = &s
	}
	return v
}

// String is the view as lines.
func (v proxyView) String() string {
	text := v.Trust.String()
	if v.Session != nil {
		text += fmt.Sprintf("session       %s, opened by unit %s\n", v.Session.ID, v.Session.Unit)
	}
	return text + fmt.Sprintf("listening     %s, for %s\n", v.URL, v.Host)
}
