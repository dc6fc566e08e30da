package api

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// reasonsFile is the list of reasons for programs in other languages.
const reasonsFile = "../../docs/api/reasons.json"

// describedReason is one reason in that file. A status of zero is left out: there the server
// does not send the reason.
type describedReason struct {
	Reason    wire.Reason `json:"reason"`
	Meaning   string      `json:"meaning"`
	Authority int         `json:"authority,omitempty"`
	Channel   int         `json:"channel,omitempty"`
}

// TestReasonsFile compares docs/api/reasons.json with the reasons that package wire declares
// and their HTTP statuses. With -update it is written anew.
func TestReasonsFile(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../wire/refusal.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var list []describedReason
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Comment == nil {
			return true
		}
		if of, ok := spec.Type.(*ast.Ident); !ok || of.Name != "Reason" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		reason := wire.Reason(text)
		list = append(list, describedReason{reason, strings.TrimSpace(spec.Comment.Text()), statuses[reason].authority, statuses[reason].channel})
		return true
	})
	if len(list) < len(statuses) {
		t.Fatalf("got %d reasons, want at least the %d that have a status", len(list), len(statuses))
	}
	var b bytes.Buffer
	b.WriteString("[\n")
	for i, r := range list {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(line)
		if i < len(list)-1 {
			b.WriteString(",")
		}
		b.WriteString("\n")
	}
	b.WriteString("]\n")
	if *update {
		if err := os.WriteFile(reasonsFile, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(reasonsFile); err != nil || !bytes.Equal(got, b.Bytes()) {
		t.Errorf("%s is not what the code says (%v); write it anew with go test ./internal/api -run TestReasonsFile -update", reasonsFile, err)
	}
}

// TestGatewayAPI: the description of units and gateways has each of their paths.
func TestGatewayAPI(t *testing.T) {
	text, err := os.ReadFile("../../docs/api/gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{wire.PathSession, wire.PathRequest, wire.PathOneOff, wire.PathHistory} {
		if !bytes.Contains(text, []byte("\n  "+path+":\n")) {
			t.Errorf("gateway.yaml has no path %s", path)
		}
	}
	for _, field := range []string{wire.FieldTicket, wire.FieldCookie, wire.FieldUnits, wire.FieldHead, wire.FieldTime, wire.FieldCredential, wire.FieldUnit, wire.FieldAffinity} {
		if !bytes.Contains(text, []byte(field)) {
			t.Errorf("gateway.yaml has no header field %s", field)
		}
	}
}
