package main

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"hash/fnv"
	"iter"
	"math/rand/v2"
	"strings"
)

//go:embed text.txt
var embedded string

// freely is how often, as one in so many, a token follows from one token before
// it and not from two. It keeps the model from reciting its text.
const freely = 4

// model generates text token by token. A token is a word or a punctuation mark.
// It is immutable.
type model struct {
	after1 map[string][]string    // what follows a token, as often as it does
	after2 map[[2]string][]string // what follows two
	tokens int                    // of the text
	digest string                 // SHA-256 of the text, hexadecimal
}

// train reads a text that ends in a full stop. Its end leads to its beginning,
// so that every token has a successor.
func train(text string) *model {
	sum := sha256.Sum256([]byte(text))
	m := &model{after1: map[string][]string{}, after2: map[[2]string][]string{}, digest: hex.EncodeToString(sum[:])}
	all := tokens(text)
	m.tokens = len(all)
	for i, b := range all {
		a, next := all[(i+len(all)-1)%len(all)], all[(i+1)%len(all)]
		m.after1[b] = append(m.after1[b], next)
		m.after2[[2]string{a, b}] = append(m.after2[[2]string{a, b}], next)
	}
	return m
}

// tokens splits a text into words and the punctuation marks behind them.
func tokens(text string) []string {
	var all []string
	for _, word := range strings.Fields(text) {
		bare := strings.TrimRight(word, ".,:;?!")
		if bare != "" {
			all = append(all, bare)
		}
		for _, mark := range word[len(bare):] {
			all = append(all, string(mark))
		}
	}
	return all
}

// generate continues a prompt without end. The same prompt and seed give the
// same tokens. A word is led by a space, a punctuation mark is not.
func (m *model) generate(prompt string, seed uint64) iter.Seq[string] {
	hash := fnv.New64a()
	hash.Write([]byte(prompt))
	a, b := "", "."
	if said := tokens(prompt); len(said) > 1 {
		a, b = said[len(said)-2], said[len(said)-1]
	} else if len(said) == 1 {
		b = said[0]
	}
	return func(yield func(string) bool) {
		random := rand.New(rand.NewPCG(seed, hash.Sum64()))
		for {
			next := m.next(a, b, random)
			if !yield(spaced(next)) {
				return
			}
			a, b = b, next
		}
	}
}

// next chooses what follows a and b: the more of them the text knows, the
// better it fits; after words it does not know a sentence begins.
func (m *model) next(a, b string, random *rand.Rand) string {
	choices := m.after2[[2]string{a, b}]
	if len(choices) == 0 || random.IntN(freely) == 0 {
		choices = m.after1[b]
	}
	if len(choices) == 0 {
		choices = m.after1["."]
	}
	return choices[random.IntN(len(choices))]
}

func spaced(token string) string {
	if strings.Contains(".,:;?!", token) {
		return token
	}
	return " " + token
}
