// Package policyfile reads policy files and compares them.
//
// A policy is one TOML file that names the owners, which vendors vouch for hardware, the
// authority's root, and which code may have which identity. [Parse] reads it strictly
// and returns every fault at once; parsing does not show who wrote the file.
// [Compare] returns the changes between two documents and whether each loosens;
// a change that no table knows loosens.
//
// Documents of this package are not approved: code that acts on policy takes
// policy.Approved. The package refuses unknown keys, values that are not the one
// encoding, and characters that a reader does not see. It reads no clock, no file and
// no network.
//
// Files from the ground up: platforms.go, document.go, rootline.go, chip.go,
// releaseid.go, reference.go, env.go, groupnote.go, warn.go, platform.go, machines.go,
// settings.go, diff.go, floors.go, match.go, tightened.go, check.go, owners.go, parse.go,
// custody.go, group.go.
package policyfile
