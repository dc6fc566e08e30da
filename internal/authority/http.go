package authority

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/cohort-tee/cohort/internal/wire"
)

// responder makes the response to one request: a value that is written as JSON, or an error that
// is sent as a problem.
type responder func(w http.ResponseWriter, r *http.Request) (any, error)

// route is one resource and the responders of its methods.
type route struct {
	path    string // a pattern of http.ServeMux without method
	methods map[string]responder
}

func (a *Authority) routes() []route {
	get, post := http.MethodGet, http.MethodPost
	return []route{
		{api.PathChallenge, map[string]responder{post: a.postChallenge}},
		{api.PathCertificates, map[string]responder{post: a.postCertificates}},
		{api.PathLeave, map[string]responder{post: a.postLeave}},
		{api.PathTrust, map[string]responder{get: a.getTrust}},
		{api.PathPolicy, map[string]responder{get: a.getPolicy}},
		{api.PathHistory, map[string]responder{get: a.getHistory, post: a.postHistory}},
		{api.PathProposals, map[string]responder{get: a.getProposals, post: a.postProposals}},
		{api.PathProposals + "/{digest}", map[string]responder{get: a.getProposal}},
		{api.PathProposals + "/{digest}/signatures", map[string]responder{post: a.postSignatures}},
		{api.PathProposals + "/{digest}/cancel", map[string]responder{post: a.postCancel}},
		{api.PathBackup, map[string]responder{get: a.getBackup, post: a.postBackup}},
		{api.PathBackupKept, map[string]responder{post: a.postBackupKept}},
		{api.PathGroups + "/{group}", map[string]responder{get: a.getGroup}},
		{api.PathGroups + "/{group}/root", map[string]responder{post: a.postGroupRoot}},
		{api.PathGroups + "/{group}/approvals", map[string]responder{post: a.postApprovals}},
		{api.PathLog, map[string]responder{get: a.getLog}},
		{api.PathReady, map[string]responder{get: a.getReady}},
		{api.PathLive, map[string]responder{get: func(http.ResponseWriter, *http.Request) (any, error) { return api.Health{Status: "live"}, nil }}},
		{"/", nil},
	}
}

// Handler returns the authority's HTTP API. Its server must use TLS with the authority's own
// certificate, as [Authority.Serve] does.
func (a *Authority) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range a.routes() {
		mux.Handle(r.path, a.serve(r))
	}
	return clientPace().Handler(a.servePolls(a.limitRequests(mux)))
}

// OperatorHandler serves the metrics and the probes. Clients must not reach it.
func (a *Authority) OperatorHandler() http.Handler {
	return opsserver.NewMux(a.metrics.Handler(), a.Handler())
}

// limitRequests serves a request when there is a free place for it. Otherwise it refuses the
// request before it reads the body.
func (a *Authority) limitRequests(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := limit.AddressOf(r.RemoteAddr)
		if err := a.requests.Acquire(from, 1); err != nil {
			a.metrics.CountQuota(err)
			api.ProblemOf(err).Write(w)
			return
		}
		defer a.requests.Release(from, 1)
		h.ServeHTTP(w, r)
	})
}

// serve serves a route within the limits on requests.
func (a *Authority) serve(route route) http.Handler {
	return a.respond(route, func(w http.ResponseWriter, r *http.Request) (any, error) { return a.dispatch(route, w, r) })
}

// respond is the only place that writes responses, sends problems, and counts and logs requests.
func (a *Authority) respond(route route, serve responder) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		response, err := serve(w, r)
		var body []byte
		if err == nil {
			if body, err = json.Marshal(response); err != nil {
				err = fmt.Errorf("encoding response: %w", err)
			}
		}
		if err != nil || w.Header().Get("Cache-Control") == "" {
			w.Header().Set("Cache-Control", "no-store")
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		status, reason := http.StatusOK, wire.Reason("")
		if err != nil {
			problem := problemOf(route, r, err)
			status, reason = problem.Status, problem.Reason
			a.metrics.CountQuota(err)
			a.log.Log(r.Context(), levelOf(status), "request refused", "route", route.path, "remote", r.RemoteAddr, "reason", reason, "error", err)
			problem.Write(w)
		} else {
			w.Header().Set("Content-Type", "application/json")
			// The client may be gone: then there is no one to report the error to.
			_, _ = w.Write(body)
		}
		a.metrics.CountRequest(route.path, strconv.Itoa(status), reason, time.Since(start))
	})
}

func (a *Authority) dispatch(route route, w http.ResponseWriter, r *http.Request) (any, error) {
	if err := a.limiter.Allow(r.RemoteAddr, time.Now()); err != nil {
		return nil, err
	}
	if route.methods == nil {
		return nil, wire.Refuse(wire.NotFound, "request: path", r.URL.Path, "one of the API")
	}
	response := route.methods[r.Method]
	if response == nil {
		return nil, wire.Refuse(wire.BadRequest, "request: method", r.Method, slices.Sorted(maps.Keys(route.methods)))
	}
	return response(w, r)
}

// problemOf returns the problem for an error, with status 405 (RFC 9110) for a method that the
// resource does not support.
func problemOf(route route, r *http.Request, err error) api.Problem {
	p := api.ProblemOf(err)
	if p.Reason == wire.BadRequest && route.methods[r.Method] == nil {
		p.Status = http.StatusMethodNotAllowed
	}
	return p
}

func (a *Authority) postChallenge(w http.ResponseWriter, r *http.Request) (any, error) {
	var request api.ChallengeRequest
	if err := api.ReadBody(w, r, maxChallenge, &request); err != nil {
		return nil, err
	}
	return a.challenge(request)
}

func (a *Authority) postCertificates(w http.ResponseWriter, r *http.Request) (any, error) {
	var request api.CertificateRequest
	err := api.ReadBody(w, r, wire.MaxRequest, &request)
	var response api.SealedReport
	if err == nil {
		response, err = a.certify(r.Context(), request, r.RemoteAddr)
	}
	if err == nil {
		a.metrics.Issued.WithLabelValues(request.Task + request.Group).Inc()
		a.log.Info("issued", "task", request.Task, "group", request.Group, "role", request.Role, "unit", wire.UnitIDOf(request.SigningKey), "remote", r.RemoteAddr)
		return response, nil
	}
	if api.ProblemOf(err).Status >= http.StatusInternalServerError {
		return nil, err // a fault of the authority is no refusal of the unit
	}
	// The refusal is sent even when it cannot be recorded, and is recorded even when the client
	// has disconnected.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
	defer cancel()
	if failed := a.recordRefusal(ctx, request, err); failed != nil {
		a.log.Warn("recording a refusal", "error", failed)
	}
	return nil, err
}

func (a *Authority) getTrust(w http.ResponseWriter, r *http.Request) (any, error) {
	q, err := api.ParseTrustQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if q.Nonce == nil {
		w.Header().Set("Cache-Control", sharedTrust)
	}
	return a.trust(r.Context(), limit.AddressOf(r.RemoteAddr), q)
}

func (a *Authority) getPolicy(http.ResponseWriter, *http.Request) (any, error) {
	if err := a.history.Behind(); err != nil {
		return nil, err
	}
	return a.history.Current().Policy(), nil
}

func (a *Authority) getHistory(_ http.ResponseWriter, r *http.Request) (any, error) {
	p, named, err := api.ParsePollQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if named {
		return a.historyAfter(a.history.Current(), p.Head)
	}
	from, err := number(r.URL.Query(), "from", 0)
	if err != nil {
		return nil, err
	}
	return a.proveHistory(a.history.Current(), int(min(from, wire.MaxHistory))), nil
}

func (a *Authority) postHistory(w http.ResponseWriter, r *http.Request) (any, error) {
	var h api.History
	if err := api.ReadBody(w, r, wire.MaxRequest, &h); err != nil {
		return nil, err
	}
	return a.history.Push(r.Context(), h)
}

func (a *Authority) getProposals(_ http.ResponseWriter, r *http.Request) (any, error) {
	return a.history.ShowProposals(r.Context())
}

func (a *Authority) getProposal(_ http.ResponseWriter, r *http.Request) (any, error) {
	digest, err := wire.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return nil, err
	}
	return a.history.ShowProposal(r.Context(), digest)
}

func (a *Authority) postProposals(w http.ResponseWriter, r *http.Request) (any, error) {
	var p api.ProposeRequest
	if err := api.ReadBody(w, r, wire.MaxRequest, &p); err != nil {
		return nil, err
	}
	return a.history.Propose(r.Context(), p)
}

func (a *Authority) postSignatures(w http.ResponseWriter, r *http.Request) (any, error) {
	var s api.SignatureRequest
	digest, err := onProposal(w, r, &s)
	if err != nil {
		return nil, err
	}
	return a.history.AddSignature(r.Context(), digest, s)
}

func (a *Authority) postCancel(w http.ResponseWriter, r *http.Request) (any, error) {
	var c api.CancelRequest
	digest, err := onProposal(w, r, &c)
	if err != nil {
		return nil, err
	}
	return a.history.Cancel(r.Context(), digest, c)
}

// onProposal reads the proposal's digest from the path, and the body.
func onProposal(w http.ResponseWriter, r *http.Request, body any) (wire.Digest, error) {
	digest, err := wire.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return digest, err
	}
	return digest, api.ReadBody(w, r, 4*(wire.MaxStatement+wire.MaxSignature), body)
}

func (a *Authority) getBackup(_ http.ResponseWriter, r *http.Request) (any, error) {
	return a.backupState(r.Context())
}

func (a *Authority) postBackup(w http.ResponseWriter, r *http.Request) (any, error) {
	var b api.BackupRequest
	if err := api.ReadBody(w, r, 4*(wire.MaxStatement+wire.MaxSignature), &b); err != nil {
		return nil, err
	}
	return a.backup(b)
}

func (a *Authority) postBackupKept(w http.ResponseWriter, r *http.Request) (any, error) {
	var k api.BackupKept
	if err := api.ReadBody(w, r, 2*wire.MaxShare, &k); err != nil {
		return nil, err
	}
	return a.backupKept(r.Context(), k)
}

func (a *Authority) getLog(_ http.ResponseWriter, r *http.Request) (any, error) {
	return a.logPage(r.Context(), r.URL.Query())
}

// getReady reports whether the authority can issue certificates now, with warnings about faults
// that do not stop it.
func (a *Authority) getReady(_ http.ResponseWriter, r *http.Request) (any, error) {
	if _, err := a.clock.Now(); err != nil {
		return nil, err
	}
	if err := a.history.Behind(); err != nil {
		return nil, err
	}
	if cause := a.inForce().unnamed; cause != nil {
		return nil, wire.Refuse(wire.Unavailable, "authority", cause, "an authority that policy names")
	}
	return api.Health{Status: "ready", Warnings: a.warnings(), Contradictions: a.history.Contradictions()}, a.store.CheckConnection(r.Context())
}

// levelOf returns the level at which a refusal is logged: higher for faults of the authority than
// for those of clients.
func levelOf(status int) slog.Level {
	if status >= http.StatusInternalServerError {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}
