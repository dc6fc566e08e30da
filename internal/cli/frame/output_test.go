package frame

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestWithSchemaPutsTheSchemaFirst(t *testing.T) {
	own := struct {
		Schema string `json:"schema"`
	}{"cohort/x/v1"}
	for _, v := range []any{struct{}{}, struct{ A int }{1}, own} {
		b, err := WithSchema("x", v)
		if n := strings.Count(string(b), "schema"); n != 1 {
			t.Errorf("%s: got %d schemas, want 1", b, n)
		}
		var got struct{ Schema string }
		if err != nil || json.Unmarshal(b, &got) != nil || got.Schema != "cohort/x/v1" || !strings.HasPrefix(string(b), "{\n  \"schema\"") {
			t.Errorf("got %q, %v", b, err)
		}
	}
	if _, err := WithSchema("x", []int{1}); err == nil {
		t.Error("a list was accepted, want an error")
	}
}
