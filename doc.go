// Package cohort gives one attested identity, and one encrypted session, to a
// whole cluster of trusted execution environments (TEEs). This file is the map.
//
// # Who is who
//
// A task is a program, known by its reference values (its code hash on each
// platform). A unit is one running replica of a task inside a TEE. The authority
// is the trusted certificate generator, itself in a TEE: it appraises a unit's
// evidence, matches it with the policy that owners signed k-of-n, and returns a
// certificate report. A client pins one value, the genesis digest of the
// policy history, and can check everything from there.
//
// # Trust boundary
//
// Trusted are the TEEs of the platforms that policy names, the code whose
// measurements policy names, and k of the n owners together. Not trusted are
// the network, hosts, the authority's operator and database, and any proxy
// between. The long form is docs/threat-model.md.
//
// # Three flows
//
// A unit gets its certificate report, a client's request runs in a unit, and owners
// change policy; ⇒ crosses the network. house_test.go finds each name in the code.
//
//	unit.Start → attest.Attester.Attest ⇒ authority.Authority.certify → attest.Verifier.Appraise → policy.Approved.Admit → identity.Issuer.UnitLeaf
//	channelhttp.Transport.RoundTrip → channel.Session.NewRequest ⇒ manager.gateway.forward ⇒ channel.Host.Open → channel.ServerRequest.Authenticate → channel.ServerRequest.Responder
//	policyfile.Parse → sshsig.Sign ⇒ history.History.Propose → policy.Approved.Next → store.Store.Append → history.History.install
//
// # The flows in full
//
// A unit obtains its certificate report:
//
//	unit.Start → (*Unit).renew → api.Authority.Challenge ⇒ authority.challenge
//	  → attest.BindReportData → Attester.Attest → api.Authority.Certify ⇒ authority.certify
//	      → collateral.Endorse → attest.Verifier.Appraise → policy.Approved.Admit → identity.Issuer
//	      → store.Record → (*enrolment).sealReport, which signs the report, then encrypts it
//	  → identity.Check → serve
//
// A client trusts a task, and connects over TLS to any replica:
//
//	client.FetchTrust → policy.Replay → api.Authority.Trust ⇒ authority.trust
//	  → trustresponse.Check.Verify → attest.Verifier.Appraise → policy.Approved.AdmitAuthority
//	  (through a gateway: api.Gateway.Trust ⇒ authority.sharedEvidence → trustresponse.SignStatement
//	  → trustresponse.Check.VerifyRelayed → trustresponse.ParseStatement)
//	client.New → (*Client).RoundTrip → tls.Config.VerifyConnection → identity.Check
//	  (and again at another replica: call.handleBroken → pool.choose)
//
// A user opens a session with one unit, and talks to the whole cluster:
//
//	client.Open → channelhttp.Transport ⇒ manager's gateway ⇒ channel.Host.Accept (unit A)
//	  → channelhttp.Relay.Push → bus ⇒ manager's relay ⇒ channel.Host.ImportSession (unit B)
//	(*client.Channel).RoundTrip → channel.Session.NewRequest ⇒ gateway.forward
//	  → registry.waitForUnit → registry.selectUnit
//	  ⇒ channel.Host.Open (unit B), which refuses a request that is bound to another unit
//	  → ServerRequest.Authenticate, which takes its number: at most once → http.Handler → Responder
//	  (and again: channelhttp's decide says whether, call.target to which unit)
//
// A client that knows nothing of us sends one-off requests (Oblivious HTTP):
//
//	cohort trust --ohttp → client.NewOneOff → unitauth.VerifyOHTTPKeys (signed by a unit)
//	any OHTTP client ⇒ manager's gateway ⇒ channel.Host.OpenOHTTP (any unit)
//	  → OHTTPServerRequest.OpenHead, which decrypts → http.Handler
//
// Founders make a domain:
//
//	cohort authority init --draft → sealed.CreateRoot → founding.MakeRoot → store
//	cohort policy sign --init → founding.Founder.Check → policydraft.Draft.Fill → sign
//	  (and before, where a key is bound by a credential: authority init --open → founding.OpenChallenge)
//
// Owners change policy:
//
//	cohort policy sign → policyfile.Parse ⇒ history.Propose → policy.Propose
//	  → policy.Approved.Next → signers, who are distinct and verified
//	  → policyfile.Owners.CheckQuorum, which counts k of n
//	  → store (compare and swap) → snapshot
//
// The parties of a group approve its root, which owners do not have:
//
//	(*Authority).snapshot → groupRoots → Roster.AdmitAuthority → store (first row stays)
//	cohort group approve ⇒ authority.groupRoot → attest.Verifier.Appraise, Roster.AdmitAuthority
//	  → sign ⇒ history.AddStatement → policy.Approved.Next → policy.GroupState
//	policy.Approved.AdmitMember → GroupState.Consents, which refuses a party that withdrew
//	  → identity.Issuer.checkGrant, which asks again → identity.Check
//
// Owners keep a backup of the root, and bring it back on another machine:
//
//	cohort authority backup ⇒ authority.backup → backup.Split → shares, sealed to owners
//	cohort authority restore → (each owner: backup.Unlock, for the TEE that asks)
//	  → authority.Restore → backup.Combine → store
//
// A policy step reaches everyone: units and clients each have one poll waiting, at the
// authority or at a gateway, which has one for all its clients:
//
//	history.Adopt → snapshot → authority.waitHistory ⇒ history.Watcher.Run
//	  → History.Extend → identity.ParseHead → unit.adopt → Unit.concerned → unit.renew
//	                                        → client's Trust.under → connections checked again
//	  (manager's chronicle ⇒ Gateway.Watch, where no authority has a place)
//	a leaf is cut off: policy.Approved.CutOff → policyfile.ChipRefused → the platform's rules;
//	a shared leaf names no chip: it ends with the step that cut one, policy.Approved.LastCut
//
// Trust is a type on each of these ways: Evidence → Appraise → attest.Result;
// file and signatures → policy.Approved; chain → identity.Peer. Only the
// function on the arrow makes the right-hand type, its zero value refuses, and
// code that acts on trust takes only that type.
//
// # Floors
//
// Imports go down only. floors_test.go holds this table against the tree, with
// the third-party modules each package may reach.
// Files that ask a TEE for evidence are built for linux alone, where all TEEs are;
// what appraises builds for darwin, windows and js/wasm too (builds_test.go).
//
//	0  internal/wire             framing, labels, digests, sizes, reasons
//	   internal/limit            what a server bounds for each address: connections, requests,
//	                             places, the pace of reads and writes
//	   internal/retry            how long a caller waits before it tries again
//	   internal/fullduplex       lets a proxy respond before it has read a request to the end
//	   internal/cli/tree         prints facts for people, each below the one it belongs to
//	   internal/queue            a heap whose items can be removed from wherever they are
//	   internal/tracecontext     traceparent and tracestate of requests, checked in form
//	   internal/der              writes ASN.1 elements, of which certificates are made
//	   internal/loopback         addresses for the servers that tests start; tests only
//	   internal/testworld/bubble runs tests on a made-up clock; tests only
//	   attest/internal/closed    keeps the set of appraisers closed
//	1  attest                    Evidence in, Attestation Result out
//	   attest/…/…rules           what policy files may say of a platform: registers, keys,
//	                             directions; beside attest, and without a vendor's library,
//	                             because every unit reads policy
//	   internal/envelope         what an untrusted carrier may read of the channel's messages
//	   internal/affinity         units in the order of a client's key, which is blinded
//	   internal/forwarded        the addresses of clients behind proxies that are trusted to name them
//	   internal/bhttp            binary HTTP (RFC 9292), the plaintext of requests and responses
//	   internal/chunk            a message as encrypted chunks, in order and to its end
//	   attest/internal/pki       how vendors vouch by certificates: chains, revocation
//	                             lists, validity, and a memory of what was verified
//	   internal/hostclock        a unit's time, of which the host sets the wall clock
//	   internal/api              the authority's API: bodies, problems, client
//	   policy/sshsig             SSH signatures of owners and parties
//	   internal/authority/trustedclock  the authority's time, of which the host has one clock
//	   internal/bus              units and their managers: hints and sealed bytes, in
//	                             frames of our own
//	2  attest/soft …             one platform each, attest/nvidia a device beside one;
//	                             attest/snp imports attest/tpm beside it, whose quotes
//	                             Azure's reports vouch for
//	   policy/policytoml         strict TOML: tables, faults, characters that are not seen
//	   policy/policyfile         policy files: read, checked, compared
//	   policy/policydraft        the first policy before its authority root exists
//	   policy                    what owners and parties approve, and when it is approved
//	   policy/policytest         policies, keys and vectors of their tests; tests only
//	   internal/bus/cluster      managers and one another over NATS, which no unit reaches
//	   internal/bus/natsd        the NATS server in a manager, which listens nowhere
//	   internal/opsserver        HTTP for operators, apart from the listener of clients
//	   internal/ohttp            Oblivious HTTP (RFC 9458): keys, and messages whole or in chunks
//	   internal/collateral       vendors' documents: fetched and cached, never inside
//	                             appraisal; which ones, the table of platforms says
//	3  attest/platforms          the table of all platforms
//	   identity                  keys and chains from the root secret; Check
//	   attest/attesttest         plays TEE vendors; tests only
//	   attest/vectortest         judges folders of captured evidence; tests only
//	4  internal/authority/store  what the authority keeps; testdb/ starts a server, tests only
//	   internal/authority/admission  bounds on requests, polls and challenges
//	   internal/authority/records  rows of that store under the root's MAC, and damaged ones
//	   internal/failpoint        kills a process at one point of its work; tests only
//	   internal/backup           the root secret as shares sealed to its owners
//	   internal/founding         what founders check before they sign the first policy: on
//	                             its own, because the TEE that makes a root and the
//	                             owner who pins it must agree, and neither is the other
//	   internal/relay            sealed sessions between the units of a cluster, and stored
//	                             copies of them; knows no key
//	   internal/manager/ranges   session numbers that a manager allocates, each at most once
//	   internal/manager/selfsigned  the certificate of a manager's bus, if the operator has none
//	   internal/manager/statuspage  the page of a manager's cluster, for its operator
//	   internal/manager/trustrelay  requests for trust, passed on by a gateway to the authorities
//	   internal/history          following the policy history from its genesis
//	   internal/unitauth         how a client knows units: pins, trust, certificates, receipts
//	   internal/trustresponse    an authority's trust response: what a pin covers, whose evidence
//	                             it is, whichever way it came
//	   internal/channel          the trusted channel: sessions, requests and responses, as a
//	                             state machine without network, over unitauth
//	   internal/testworld        owners, the policies they signed, a clock and checks, in one
//	                             place for the tests of all packages; tests only
//	   internal/bus/bustest      units' certificates for tests of bus and manager, beside
//	                             testworld; tests only
//	5  internal/busrelay         a unit's sealed sessions over the bus
//	   internal/channelhttp      the trusted channel over net/http: a RoundTripper and a Handler,
//	                             which unit and client stand on
//	   internal/manager          registry, gateway, links to units and managers; knows no key
//	   unit                      SDK for units
//	   unit/unittest             an authority that misbehaves on demand; tests only
//	   internal/authority/history  the policy history: steps, proposals, delays, statements
//	   internal/authority/metrics  the authority's numbers
//	   internal/authority/sealed  the root and the secrets of groups, sealed in the store
//	   internal/authority/ringkeys  ring keys, and the lease by which one authority makes them
//	   internal/authority        challenge, issue, trust; the API over both
//	   client                    the verifying client
//	   internal/hostilegateway   a gateway with named manipulations; tests only
//	   examples/jointrisk/risk   what the three programs of that example agree on
//	6  internal/agent            runs a program that knows nothing of Cohort as a unit
//	   internal/localproxy       an HTTP proxy to a cluster, for the programs of one machine
//	   internal/cli              the commands of all families put together
//	   internal/cli/localtee     the TEEs of this build: platforms, measuring, launching
//	   internal/cli/frame        one run of a command: flags, results, errors, its TEE
//	   internal/cli/sshkey       the SSH keys of owners and parties
//	   internal/cli/drafttext    the text of policies: a draft, a successor
//	   internal/authorityclient  a command's pins, its trust, and its client of an authority
//	   internal/cli/partystatement  what a party states of a group, signed and kept
//	   internal/cli/…cmd         the commands of one family each: policy, authority, group,
//	                             client, evidence, ops, run, dev
//	   internal/cli/clitest      what tests of commands share; tests only
//	   internal/dev              a development cluster on one machine
//	   internal/dev/check        the frame of its checks from outside, and beside it
//	                             identitycheck, channelcheck and groupcheck
//	   internal/systest          a cluster in one process; tests only
//	   bench                     what things cost beside their limits; tests only
//	   examples/…                services to run under Cohort
//	7  cmd/cohort                main
package cohort
