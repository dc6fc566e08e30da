// Package policytoml reads the TOML of policy files strictly, and collects every fault.
//
// [Decode] refuses text that is too large, is not UTF-8, or has a character that a reader
// does not see. A [Table] reads one TOML table: each method reads one key and adds a
// [Fault] if the value breaks its rule, and [Table.RejectUnknown] refuses every key that
// was not read. A key therefore exists if and only if code reads it.
//
// The package knows no key of a policy: package policyfile does. It trusts nothing in the
// text, and reads no clock, no file and no network.
//
// Files from the ground up: fault.go, hidden.go, decode.go, table.go.
package policytoml
