package clientcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// requestFlags are the flags of `cohort request`.
type requestFlags struct {
	pins      authorityclient.Pins
	addresses []string
	method    string
	data      string
	headers   []string
	fail      bool
	include   bool
	timeout   time.Duration

	session    sessionFlags
	receipt    bool
	receiptOut string
}

// Request is `cohort request`.
func Request(a *frame.App) *cobra.Command {
	var f requestFlags
	cmd := &cobra.Command{
		Use:   "request URL",
		Short: "Send one HTTP request to a checked unit and print the response",
		Long: "Send a request to any replica whose identity was checked. The URL's host is a\n" +
			"name of the task; the addresses are --address, or the host's own. With --session\n" +
			"it goes through a gateway (default the URL's host), which reads nothing of it,\n" +
			"to any unit of the cluster.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return request(cmd.Context(), a, f, args[0]) },
	}
	f.pins.Register(cmd)
	f.pins.RegisterGroup(cmd, "with --session and --role: group to follow through the rosters its parties approve")
	cmd.Flags().StringVar(&f.session.role, "role", "", "role of the group that the session is with; * is the whole group")
	flags := cmd.Flags()
	flags.StringArrayVar(&f.addresses, "address", nil, "HOST:PORT of a replica; repeat")
	flags.StringVarP(&f.method, "method", "X", "", "method (default GET, with -d POST)")
	flags.StringVarP(&f.data, "data", "d", "", "body; @FILE reads a file, @- stdin")
	flags.StringArrayVarP(&f.headers, "header", "H", nil, "header field, NAME: VALUE; repeat")
	flags.BoolVar(&f.fail, "fail", false, "exit 5 when the status is 400 or more")
	flags.BoolVarP(&f.include, "include", "i", false, "print status and header before the body")
	flags.DurationVar(&f.timeout, "timeout", time.Minute, "how long all attempts together may take")
	f.session.register(cmd)
	f.session.gateway.Register(cmd, "URL of a gateway, or of several with commas between: the session's (default the URL's host), and without --authority the way to trust")
	f.pins.RegisterFresh(cmd)
	flags.BoolVar(&f.receipt, "receipt", false, "with --session: have the unit sign its response to the request")
	flags.StringVar(&f.receiptOut, "receipt-out", "", "with --session: file for the receipt (see cohort verify --receipt)")
	return cmd
}

// validate returns the first fault of the flags.
func (f *requestFlags) validate() error {
	f.receipt = f.receipt || f.receiptOut != ""
	switch {
	case f.session.wanted && len(f.addresses) > 0:
		return frame.Usage("--address does not go with --session: give --gateway")
	case !f.session.wanted && (f.receipt || f.session.needed(f.pins)):
		return frame.Usage("--fresh-evidence, --receipt and --receipt-out need --session, and so do --gateway and --manager-ca beside --authority")
	}
	return nil
}

// requestView is a response in JSON.
type requestView struct {
	Status int         `json:"status"`
	Header http.Header `json:"header"`
	Body   string      `json:"body"`
}

func request(ctx context.Context, a *frame.App, f requestFlags, address string) error {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	if err := f.validate(); err != nil {
		return err
	}
	r, err := newRequest(ctx, a, f, address)
	if err != nil {
		return err
	}
	if f.session.wanted && f.session.gateway.URL == "" {
		f.session.gateway.URL = "https://" + r.URL.Host
	}
	f.pins.Gateway = f.session.gateway
	t, err := authorityclient.Trust(ctx, a, f.pins)
	if err != nil {
		return err
	}
	if f.session.wanted {
		return requestInSession(a, r, f, t)
	}
	addresses := f.addresses
	if len(addresses) == 0 {
		addresses = []string{net.JoinHostPort(r.URL.Hostname(), portOf(r.URL))}
	}
	c, err := client.New(client.Config{Trust: t, ServerName: r.URL.Hostname(), Addresses: addresses})
	if err != nil {
		return err
	}
	defer c.Close()
	return roundTrip(a, c, r, f)
}

// requestInSession sends the request through the trusted channel.
func requestInSession(a *frame.App, r *http.Request, f requestFlags, t *client.Trust) error {
	ctx := r.Context()
	c, err := f.session.openSession(ctx, client.OpenConfig{Trust: t, Receipts: f.receipt})
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	s, err := c.Session(ctx)
	if err != nil {
		return err
	}
	v := viewSession(s)
	a.Notef("session %s opened by unit %s, until %s", v.ID, v.Unit, v.Expires)
	if !f.receipt {
		return roundTrip(a, c, r, f)
	}
	var record client.Record
	requestErr := roundTrip(a, c, r.WithContext(client.WithRecord(ctx, &record)), f)
	if requestErr != nil && record.Receipt == nil {
		return requestErr
	}
	at := a.Now()
	receipt, err := client.VerifyReceipt(record, c.Trust(), at)
	if err != nil {
		return errors.Join(err, requestErr)
	}
	a.Notef("response by unit %s, as its receipt proves", receipt.Unit.UnitID())
	if f.receiptOut != "" {
		return errors.Join(requestErr, writeReceipt(f.receiptOut, record, c.Trust(), at))
	}
	return requestErr
}

// roundTrip sends the request and prints the response.
func roundTrip(a *frame.App, through http.RoundTripper, r *http.Request, f requestFlags) error {
	response, err := through.RoundTrip(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := printResponse(a, response, f); err != nil {
		return err
	}
	if f.fail && response.StatusCode >= http.StatusBadRequest {
		return &frame.Fault{Code: frame.CodeHTTP, Cause: errors.New(response.Status)}
	}
	return nil
}

func portOf(u *url.URL) string {
	if port := u.Port(); port != "" {
		return port
	}
	return "443"
}

func newRequest(ctx context.Context, a *frame.App, f requestFlags, address string) (*http.Request, error) {
	body, err := requestBody(a, f.data)
	if err != nil {
		return nil, err
	}
	method := f.method
	if method == "" {
		method = http.MethodGet
		if f.data != "" {
			method = http.MethodPost
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, frame.Usage("%w", err)
	}
	if r.URL.Scheme != "https" || r.URL.Host == "" {
		return nil, frame.Usage("URL: got %q, want https://NAME/…", address)
	}
	for _, field := range f.headers {
		name, value, ok := strings.Cut(field, ":")
		if !ok {
			return nil, frame.Usage("--header: got %q, want NAME: VALUE", field)
		}
		r.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return r, nil
}

// requestBody is the text of -d, or the file it names.
func requestBody(a *frame.App, data string) (io.Reader, error) {
	path, isFile := strings.CutPrefix(data, "@")
	switch {
	case data == "":
		return nil, nil
	case !isFile:
		return strings.NewReader(data), nil
	case path == "-":
		b, err := io.ReadAll(a.Stdin)
		return strings.NewReader(string(b)), err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading body: %w", err)
	}
	return strings.NewReader(string(b)), nil
}

// printResponse streams the body to stdout.
func printResponse(a *frame.App, response *http.Response, f requestFlags) error {
	if a.Output == "json" {
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return fmt.Errorf("reading the response: %w", err)
		}
		return a.PrintResult("request", requestView{response.StatusCode, response.Header, string(body)}, "")
	}
	if f.include {
		fmt.Fprintf(a.Stdout, "%s %s\n", response.Proto, response.Status)
		if err := response.Header.Write(a.Stdout); err != nil {
			return err
		}
		fmt.Fprintln(a.Stdout)
	}
	if _, err := io.Copy(a.Stdout, response.Body); err != nil {
		return fmt.Errorf("reading the response: %w", err)
	}
	return nil
}
