package policytoml

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/pelletier/go-toml/v2"
)

// Decode decodes a file into TOML values. It refuses files that are too large, are not
// UTF-8, have a byte order mark, a CR or a hidden character, or are not TOML.
func Decode(raw []byte) (map[string]any, error) {
	switch {
	case len(raw) > wire.MaxPolicy:
		return nil, Faults{{Rule: "size in bytes", Got: fmt.Sprint(len(raw)), Want: fmt.Sprint("at most ", wire.MaxPolicy)}}
	case !utf8.Valid(raw):
		return nil, Faults{{Rule: "encoding", Got: "bytes that are not UTF-8", Want: "UTF-8"}}
	case bytes.HasPrefix(raw, []byte("\ufeff")):
		return nil, Faults{{Rule: "encoding", Got: "a byte order mark", Want: "none"}}
	case bytes.ContainsRune(raw, '\r'):
		return nil, Faults{{Rule: "line ends", Got: "CR", Want: "LF alone"}}
	}
	if err := visible(string(raw)); err != nil {
		return nil, err
	}
	var values map[string]any
	if err := toml.Unmarshal(raw, &values); err != nil {
		return nil, Faults{{Path: position(err), Rule: "TOML", Got: err.Error(), Want: "TOML 1.1"}}
	}
	return values, nil
}

// position returns the line and the column of a TOML error.
func position(err error) string {
	var at *toml.DecodeError
	if !errors.As(err, &at) {
		return ""
	}
	line, column := at.Position()
	return fmt.Sprintf("line %d, column %d", line, column)
}
