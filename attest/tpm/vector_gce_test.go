package tpm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// gceCaptured appraises go-tpm-tools' attest.Attestation, a protobuf: field 1 the key (pinned), 2
// quotes {1 TPMS_ATTEST, 2 TPMT_SIGNATURE, 3 PCRs {1 bank, 2 values {1 index, 2 value}}}, 3 the
// event log.
func gceCaptured(raw []byte, _ attest.Endorsements, rules attest.Rules, _ time.Time) (attest.Claims, error) {
	fields, err := protobuf(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	var public, log []byte
	var quotes []protoField
	for _, f := range fields {
		switch f.number {
		case 1:
			public = f.bytes
		case 2:
			quotes = append(quotes, f)
		case 3:
			log = f.bytes
		}
	}
	if wire.Sum(public) != rules.Roots[0] || len(quotes) == 0 {
		return attest.Claims{}, wire.Refuse(wire.BadChain, "captured: key and quotes", len(quotes), "the pinned key and quotes by it")
	}
	key, err := parseKey(public)
	if err != nil {
		return attest.Claims{}, err
	}
	details := map[string]any{"ak_public": hex.EncodeToString(public)}
	pcrs, told := map[string]any{}, []any{}
	for i := range quotes {
		quote, signature, values, err := gceQuote(quotes[i].bytes)
		if err != nil {
			return attest.Claims{}, err
		}
		if signature, err = ParseSignature(signature); err != nil {
			return attest.Claims{}, err
		}
		q, err := VerifyQuote(key, quote, signature)
		if err != nil {
			return attest.Claims{}, err
		}
		bank := slices.IndexFunc(banks, func(known bank) bool { return len(q.selections) == 1 && known.alg == q.selections[0].Bank })
		if bank < 0 {
			return attest.Claims{}, wire.Refuse(wire.BadDigest, "captured: bank of the quote", fmt.Sprint(q.selections), "one of SHA-1, SHA-256, SHA-384")
		}
		b := banks[bank]
		if err := q.Covers(b.alg, allPCRs, values); err != nil {
			return attest.Claims{}, err
		}
		nonce := hex.EncodeToString(q.ExtraData)
		if before, ok := details["nonce"]; ok && before != nonce {
			return attest.Claims{}, wire.Refuse(wire.BadNonce, "captured: nonce", nonce, before)
		}
		details["nonce"] = nonce
		if details["event_log"], err = replayed(log, b.hash, allPCRs, values); err != nil {
			return attest.Claims{}, err
		}
		pcrs[b.name] = pcrClaims(allPCRs, values)
		told = append(told, map[string]any{
			"pcr_selection": selectionText(b.name, allPCRs), "pcr_digest": hex.EncodeToString(q.Digest), "signature_hash": "sha256",
		})
	}
	details["pcrs"], details["quotes"] = pcrs, told
	return attest.Claims{Details: details}, nil
}

// gceQuote splits one quote into its parts; the values are in the order of their PCRs.
func gceQuote(raw []byte) (quote, signature, values []byte, err error) {
	fields, err := protobuf(raw)
	if err != nil {
		return nil, nil, nil, err
	}
	byIndex := map[uint64][]byte{}
	for _, f := range fields {
		switch f.number {
		case 1:
			quote = f.bytes
		case 2:
			signature = f.bytes
		case 3:
			inner, err := protobuf(f.bytes)
			if err != nil {
				return nil, nil, nil, err
			}
			for _, entry := range inner {
				pair, err := protobuf(entry.bytes)
				if entry.number != 2 {
					continue
				}
				if err != nil {
					return nil, nil, nil, err
				}
				var index uint64
				var value []byte
				for _, p := range pair {
					if p.number == 1 {
						index = p.value
					} else {
						value = p.bytes
					}
				}
				byIndex[index] = value
			}
		}
	}
	for _, pcr := range allPCRs {
		values = append(values, byIndex[uint64(pcr)]...)
	}
	return quote, signature, values, nil
}

type protoField struct {
	number uint64
	value  uint64
	bytes  []byte
	start  int // offset of bytes in the parsed message
}

// protobuf parses varints and byte strings, the only types in use here.
func protobuf(raw []byte) ([]protoField, error) {
	refused := wire.Refuse(wire.Malformed, "captured: protobuf", "another encoding", "fields")
	var out []protoField
	for at := 0; at < len(raw); {
		tag, n := binary.Uvarint(raw[at:])
		if n <= 0 {
			return nil, refused
		}
		at += n
		v, n := binary.Uvarint(raw[at:])
		if n <= 0 {
			return nil, refused
		}
		at += n
		f := protoField{number: tag >> 3, value: v}
		switch tag & 7 {
		case 0:
		case 2:
			if v > uint64(len(raw)-at) {
				return nil, refused
			}
			f.bytes, f.start = raw[at:at+int(v)], at
			at += int(v)
		default:
			return nil, refused
		}
		out = append(out, f)
	}
	return out, nil
}

func gceSubject() vectortest.Subject {
	return vectortest.Subject{
		Platform: "tpm-gce", Appraiser: captured(gceCaptured),
		Rules: func(_ vectortest.Policy, files map[string][]byte) attest.Rules {
			fields, _ := protobuf(files["evidence"])
			for _, f := range fields {
				if f.number == 1 {
					return attest.Rules{Roots: []attest.Digest{wire.Sum(f.bytes)}}
				}
			}
			return attest.Rules{}
		},
		Unsigned: unsignedGCE,
	}
}

// unsignedGCE reports whether no signature covers a byte. In the wrapper these are tags and
// lengths that lead to the same fields, and fields that are not appraised (the key's certificate,
// the bank's name). In the event log they are the unsigned bytes of any event log.
func unsignedGCE(raw []byte, offset int) bool {
	fields, err := protobuf(raw)
	if err != nil {
		panic(errors.Join(errors.New("the vector itself"), err))
	}
	for _, f := range fields {
		inside := f.start <= offset && offset < f.start+len(f.bytes)
		switch {
		case inside && f.number == 3:
			return unsignedLog(f.bytes, offset-f.start)
		case inside && f.number == 2:
			return unsignedGCEQuote(f.bytes, offset-f.start)
		case inside && f.number == 1:
			return false
		}
	}
	return true
}

func unsignedGCEQuote(raw []byte, offset int) bool {
	fields, _ := protobuf(raw)
	for _, f := range fields {
		if f.start <= offset && offset < f.start+len(f.bytes) {
			if f.number != 3 {
				return false
			}
			values, _ := protobuf(f.bytes)
			for _, v := range values {
				pair, _ := protobuf(v.bytes)
				for _, p := range pair {
					at := f.start + v.start + p.start
					if p.number == 2 && at <= offset && offset < at+len(p.bytes) {
						return bytes.Equal(p.bytes, nil)
					}
				}
			}
		}
	}
	return true // in the wrapper
}
