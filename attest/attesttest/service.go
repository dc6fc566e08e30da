package attesttest

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/cohort-tee/cohort/attest"
)

// Service plays AMD's key distribution service, for this chip only.
func (c *SNPChip) Service() http.Handler {
	mux := http.NewServeMux()
	role, path := "vcek", "/vcek/v1/"+c.vendor.product
	if c.cloud != "" {
		role, path = "vlek", "/vlek/v1/"+c.vendor.product
	}
	serve := func(pattern, role string) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, _ *http.Request) { w.Write(c.Endorsements()[role]) })
	}
	serve(path+"/cert_chain", "ask_ark")
	serve(path+"/crl", "crl")
	mux.HandleFunc(fmt.Sprintf("GET %s/%x", path, c.id[:c.vendor.idSize()]), func(w http.ResponseWriter, r *http.Request) {
		want := fmt.Sprintf("blSPL=%d&teeSPL=%d&snpSPL=%d&ucodeSPL=%d", c.tcb.Bootloader, c.tcb.TEE, c.tcb.SNP, c.tcb.Microcode)
		if c.vendor.product == "Turin" {
			want = fmt.Sprintf("fmcSPL=%d&%s", c.tcb.FMC, want)
		}
		if role != "vcek" || r.URL.RawQuery != want {
			http.NotFound(w, r)
			return
		}
		w.Write(c.cert.Raw)
	})
	return mux
}

// Service plays Intel's provisioning certification service, with the root's revocation
// list.
func (v *DCAPVendor) Service() http.Handler {
	mux := http.NewServeMux()
	serve := func(pattern, query, role, chain string, of attest.Platform) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery != query {
				http.NotFound(w, r)
				return
			}
			endorsed := v.Endorsements(of)
			if chain != "" {
				w.Header().Set(chain, url.PathEscape(string(endorsed[role+"_chain"])))
			}
			w.Write(endorsed[role])
		})
	}
	for _, of := range []attest.Platform{attest.TDX, attest.SGX} {
		path := "/" + string(of) + "/certification/v4"
		serve(path+"/tcb", fmt.Sprintf("fmspc=%x", dcapFMSPC), "tcb_info", "TCB-Info-Issuer-Chain", of)
		serve(path+"/qe/identity", "", "qe_identity", "SGX-Enclave-Identity-Issuer-Chain", of)
	}
	serve("/sgx/certification/v4/pckcrl", "ca=platform&encoding=der", "pck_crl", "", attest.SGX)
	serve("/IntelSGXRootCA.der", "", "root_crl", "", attest.SGX)
	return mux
}
