package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// suites make the cases, each from the files of one folder.
var suites = []func(*vectors){
	signatures, policies, histories, statements, identities, heads, softEvidence, trust, sessions, openings, messages, refusedMessages, binaryHTTP, retries,
}

const (
	policyVectors  = "policy/testdata/vectors/"
	channelVectors = "internal/channel/testdata/vectors/"
)

// object is a JSON object.
type object = map[string]any

func signatures(v *vectors) {
	const folder = "policy/sshsig/testdata/vectors/signature/"
	message := v.text(folder + "message")
	for _, file := range v.files(folder + "*.txt") {
		fields, armored := headers(v.text(file))
		input := object{"signature": armored, "namespace": first(fields["namespace"]), "message": text64(message)}
		v.verdict("signature", name(file), input, first(fields["expect"]), object{"key": first(fields["key"])})
	}
}

func policies(v *vectors) {
	for _, file := range v.files("policy/policyfile/testdata/vectors/policy/*.toml") {
		text := v.text(file)
		line, _, _ := strings.Cut(text, "\n")
		expect, rest, _ := strings.Cut(strings.TrimPrefix(line, "# expect: "), ", ")
		// The digests of reference values follow, each after its path.
		digests := []string{}
		for row := range strings.SplitSeq(rest, ", ") {
			if _, digest, ok := strings.Cut(row, " "); ok {
				digests = append(digests, digest)
			}
		}
		v.verdict("policy", name(file), object{"policy": text64(text)}, expect, object{"references": digests})
	}
}

func histories(v *vectors) {
	const folder = policyVectors + "history/"
	for _, file := range v.files(folder + "*.txt") {
		fields, _ := headers(strings.TrimSuffix(v.text(file), "\n"))
		steps := []object{}
		for _, line := range fields["step"] {
			names := strings.Fields(line)
			step := object{"policy": text64(v.text(folder + names[0]))}
			signed := []string{}
			for _, signature := range names[1:] {
				signed = append(signed, v.text(folder+signature))
			}
			step["signatures"] = signed
			steps = append(steps, step)
		}
		input := object{"genesis": first(fields["pin"]), "history": steps}
		v.verdict("history", name(file), input, first(fields["expect"]), object{"head": first(fields["head"])})
	}
}

func statements(v *vectors) {
	var texts []struct{ Name, Text, Roster, Expect string }
	v.json(policyVectors+"group/texts.json", &texts)
	for _, t := range texts {
		if t.Roster != "" {
			v.verdict("roster", t.Name, object{"roster": hex64(t.Roster)}, t.Expect, object{})
		} else {
			v.verdict("statement", t.Name, object{"statement": text64(t.Text)}, t.Expect, object{})
		}
	}
}

func identities(v *vectors) {
	var file struct {
		Policy string
		IDs    map[string]string `json:"identity_ids"`
	}
	v.json("identity/testdata/vectors/identity.json", &file)
	for _, name := range slices.Sorted(maps.Keys(file.IDs)) {
		task, release, _ := strings.Cut(name, " ")
		v.accepts("identity-id", name, object{"policy": text64(file.Policy), "task": task, "release": release}, object{"id": file.IDs[name]})
	}
}

func heads(v *vectors) {
	var file struct {
		Policy, Head, Time string
		Root               string `json:"authority_root_certificate"`
		Steps              int
		Spread             int `json:"spread_ms"`
		Field              string
	}
	v.json("identity/testdata/vectors/head.json", &file)
	input := object{"policy": text64(file.Policy), "authority_root": hex64(file.Root), "at": file.Time, "field": file.Field}
	v.accepts("head", "head.json", input, object{"head": file.Head, "steps": file.Steps, "time": file.Time, "spread_ms": file.Spread})
	cut := maps.Clone(input)
	cut["field"] = file.Field[:max(0, len(file.Field)-4)]
	v.refuses("head", "the last bytes cut off", cut, "malformed")
	other := maps.Clone(input)
	other["at"] = "2026-11-23T12:00:00Z"
	v.refuses("head", "a day later", other, "clock")
}

func softEvidence(v *vectors) {
	var file struct {
		Roots   []string
		Vectors []struct {
			Name, Evidence, Expect, Measurement string
			Statement                           object
		}
	}
	v.json("attest/soft/testdata/vectors/evidence.json", &file)
	for _, e := range file.Vectors {
		input := object{"roots": file.Roots, "evidence": hex64(e.Evidence)}
		v.verdict("soft-evidence", e.Name, input, e.Expect, object{"measurement": e.Measurement, "debug": e.Statement["debug"]})
	}
}

func trust(v *vectors) {
	for _, file := range v.files("client/testdata/vectors/trust*.json") {
		v.exchange("trust", file)
	}
}

func sessions(v *vectors) { v.exchange("session", channelVectors+"session.json") }

// exchange adds the cases of a file with an input, what it leads to, and changes that lead to the
// same or are refused.
func (v *vectors) exchange(op, file string) {
	var recorded struct {
		Input    object
		Accepted object
		Also     []struct {
			Name string
			Set  []change
		} `json:"also_accepted"`
		Refused []struct {
			Name, Reason string
			Set          []change
			Fields       map[string]string
		}
	}
	v.json(file, &recorded)
	input := func(c object) object {
		delete(c, "chain_key") // for tests that serve the chain
		return c
	}
	v.accepts(op, name(file), input(v.changed(recorded.Input, nil)), recorded.Accepted)
	for _, a := range recorded.Also {
		v.accepts(op, a.Name, input(v.changed(recorded.Input, a.Set)), recorded.Accepted)
	}
	for _, r := range recorded.Refused {
		next := v.changed(recorded.Input, r.Set)
		if len(r.Fields) > 0 {
			next["response"] = v.withFields(next["response"], r.Fields)
		}
		v.refuses(op, r.Name, input(next), r.Reason)
	}
}

// withFields replaces fields of a framed message in base64, by their numbers from 1.
func (v *vectors) withFields(message any, fields map[string]string) string {
	b, err := base64.StdEncoding.DecodeString(fmt.Sprint(message))
	if err != nil {
		v.fail(err)
		return ""
	}
	out := b[:1+int(b[0])]
	for rest, number := b[len(out):], 1; len(rest) >= 4; number++ {
		size := int(rest[0])<<24 | int(rest[1])<<16 | int(rest[2])<<8 | int(rest[3])
		field := rest[4 : 4+size]
		rest = rest[4+size:]
		if value, ok := fields[fmt.Sprint(number)]; ok {
			if field, err = base64.StdEncoding.DecodeString(value); err != nil {
				v.fail(err)
			}
		}
		out = append(slices.Clip(out), byte(len(field)>>24), byte(len(field)>>16), byte(len(field)>>8), byte(len(field)))
		out = append(out, field...)
	}
	return base64.StdEncoding.EncodeToString(out)
}

// channelFile is one file of the channel's vectors, with values in hexadecimal.
type channelFile struct{ In, Out map[string]string }

// values returns members in base64, under the names that the operations use.
func (f channelFile) values(names map[string]string) object {
	out := object{}
	for to, from := range names {
		if digits, ok := f.In[from]; ok {
			out[to] = hex64(digits)
		} else {
			out[to] = hex64(f.Out[from])
		}
	}
	return out
}

func (v *vectors) channel(file string) (f channelFile) {
	v.json(channelVectors+file+".json", &f)
	return f
}

// openings derive what both sides know after a session was opened. The certificates are
// placeholders, so the values that a client takes from them are part of the input.
func openings(v *vectors) {
	for _, file := range []string{"open", "open-evidence", "open-head"} {
		f := v.channel(file)
		input := f.values(map[string]string{"client_seed": "client_seed", "request": "open_request", "response": "response", "authority_root": "authority_root"})
		v.accepts("session-keys", file, input, f.values(map[string]string{
			"pin": "pin", "kem_secret": "kem_secret", "session_id": "session_id", "transcript": "transcript", "session_secret": "session_secret",
			"evidence_report_data": "evidence_report_data", "ticket": "sealed_session", "unit": "unit_id", "unit_time": "unit_time",
		}))
	}
}

// messages of a session, as a client makes and reads them.
func messages(v *vectors) {
	f := v.channel("request")
	v.accepts("seal-request", "request", f.values(map[string]string{"session_secret": "session_secret", "header": "header", "content": "request_content"}), f.values(map[string]string{"request": "request"}))
	for _, m := range []struct{ file, message, content string }{
		{"request", "response", "response_content"}, {"stream", "response", "response_content"}, {"close", "closed", "closed_content"}, {"close", "not_executed", "not_executed_content"},
	} {
		f := v.channel(m.file)
		input := f.values(map[string]string{"session_secret": "session_secret", "header": "header", "response": m.message})
		v.accepts("open-response", m.file+" "+m.message, input, f.values(map[string]string{"content": m.content}))
	}
}

// refusedMessages are responses that a client refuses. Messages that units or managers refuse are
// not for clients.
func refusedMessages(v *vectors) {
	var file struct {
		Cases []struct {
			Name, File, Message, Reason string
			With                        map[string]string
			Edits                       []struct {
				At, Remove int
				Insert     string
			}
		}
	}
	v.json(channelVectors+"refused.json", &file)
	for _, c := range file.Cases {
		if !slices.Contains([]string{"response", "closed", "not_executed"}, c.Message) {
			continue
		}
		f := v.channel(c.File)
		message := f.In[c.Message]
		for _, e := range slices.Backward(c.Edits) {
			message = message[:2*e.At] + e.Insert + message[2*(e.At+e.Remove):]
		}
		if message == f.In["not_executed"] {
			continue // not the response of a unit that closed, but one that a client opens
		}
		maps.Copy(f.In, c.With)
		input := f.values(map[string]string{"session_secret": "session_secret", "header": "header"})
		input["response"] = hex64(message)
		v.refuses("open-response", strings.Join([]string{c.File, c.Message, c.Name}, " "), input, c.Reason)
	}
}

func binaryHTTP(v *vectors) {
	var file struct {
		Accepted []struct {
			Name, Kind, Message, Content string
			Head, Trailer                json.RawMessage
		}
		Refused []struct{ Name, Kind, Message, Reason string }
	}
	v.json("internal/bhttp/testdata/vectors/messages.json", &file)
	for _, m := range file.Accepted {
		v.accepts("binary-http", m.Name, object{"kind": m.Kind, "message": hex64(m.Message)}, object{"head": m.Head, "content": hex64(m.Content), "trailer": m.Trailer})
	}
	for _, m := range file.Refused {
		v.refuses("binary-http", m.Name, object{"kind": m.Kind, "message": hex64(m.Message)}, m.Reason)
	}
}

func retries(v *vectors) {
	var rows []object
	v.json("internal/channelhttp/testdata/vectors/retries.json", &rows)
	for _, row := range rows {
		input := object{"hint": row["hint"], "request": row["request"]}
		output := maps.Clone(row)
		delete(output, "hint")
		delete(output, "request")
		v.accepts("retry", fmt.Sprintf("%v, %v", row["hint"], row["request"]), input, output)
	}
}

// name returns the name of a file without folder and ending.
func name(file string) string { return strings.TrimSuffix(path.Base(file), path.Ext(file)) }

func text64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// hex64 returns hexadecimal digits as base64. Digits of a vector are valid.
func hex64(digits string) string {
	b, err := hex.DecodeString(digits)
	if err != nil {
		panic("vector: " + err.Error())
	}
	return base64.StdEncoding.EncodeToString(b)
}
