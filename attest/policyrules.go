package attest

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// PolicyRules is what a policy file may state about one platform: its registers in
// reference values, the keys of its table, and in which direction a change of each key
// moves what is accepted. Package policy reads files by it, and every unit does, so that
// it links no vendor's library: each platform has it in a package of its own.
type PolicyRules struct {
	Platform Platform
	// Development marks a platform that protects nothing from its host. Policy names it
	// with development = true only, and then no other.
	Development bool
	Registers   []RegisterForm
	Keys        []Key
	// Check returns what no single key shows, or nil. has reports whether a key is there.
	Check func(r Rules, has func(key string) bool) *KeyFault
	// Chip reads a chip as results of appraisal name it into its one form, nil for other
	// text. It is nil for platforms whose chips have no name.
	Chip func(chip string) []byte
	// ChipRefused is the key that refuses a chip, as results of appraisal name it, and
	// empty where the rules accept it. It is nil where no rule names a chip.
	ChipRefused func(r Rules, chip string) (key string)
	// Launches are the reference values of the platform whose programs may have run on a
	// machine beside the one that is appraised: all that policy names. It is nil where
	// evidence is of one program only.
	Launches func(r *Rules) *[]ReferenceValue
	// SealsToOthers reports whether a TEE seals to any reference values, so that another
	// build of the authority obtains the root by policy.
	SealsToOthers bool
	// Note is what the rules let in beyond what their words state, for people. Nil is nothing.
	Note func(r Rules) string
	// Warn finds rules that are void, or less strict than they seem. Nil finds none.
	Warn func(r Rules, references []PlacedReference, warn func(key, text string))
}

// PlacedReference is a reference value of a policy, and the path where it stands.
type PlacedReference struct {
	Path string
	ReferenceValue
}

// KeyFault is a key that breaks a rule.
type KeyFault struct{ Key, Rule, Got, Want string }

// RegisterForm is one register of a platform's measurements, and how a reference value
// writes it.
type RegisterForm struct {
	Name string
	Form Form
	Size int  // in bytes, of FormBytes
	Shut bool // it is never left open: nothing else in a reference value means anything then
}

// Form is how a reference value writes a register.
type Form int

// The forms of registers. What can be zero in good code (nothing was signed, configured
// or extended) is configuration; what cannot be is code.
const (
	FormDigest       Form = iota // a SHA-256 digest, or @ and the name of a measured one; may be left out
	FormNeededDigest             // the same, and never left out
	FormArguments                // a list of arguments, hashed; may be left out
	FormCode384                  // a SHA-384 digest that is not zero
	FormExtended384              // a SHA-384 digest that is zero while nothing was extended
	FormBytes                    // hexadecimal digits that the launcher of the TEE chooses
	FormNumber16                 // a number of two bytes, big-endian
	FormPCR                      // a PCR of the SHA-256 bank of a TPM, in the table "boot" by its number
)

// PCRPrefix begins the names of registers of [FormPCR].
const PCRPrefix = "pcr"

// PCRRegisters are the registers of a TPM's PCRs.
func PCRRegisters(numbers ...int) []RegisterForm {
	var all []RegisterForm
	for _, n := range numbers {
		all = append(all, RegisterForm{Name: fmt.Sprint(PCRPrefix, n), Form: FormPCR})
	}
	return all
}

// RegisterNames are the names of all registers, in their order.
func (p PolicyRules) RegisterNames() []string {
	var names []string
	for _, r := range p.Registers {
		names = append(names, r.Name)
	}
	return names
}

// KeyKind is the type of a key's value.
type KeyKind int

// The kinds of keys, with the type of the value that [Key.Set] is given.
const (
	KeyFlag       KeyKind = iota // true or false: bool
	KeyNumber                    // from Least to Most: int64
	KeyDuration                  // from Least to Most, in nanoseconds: time.Duration
	KeyTime                      // time.Time
	KeyWord                      // text that Is accepts: string
	KeyWords                     // a list of those, each once: []string
	KeyList                      // "any", or a list of texts that Form reads: List
	KeyBytes                     // a list of texts that Form reads: [][]byte
	KeyJoined                    // "any", or a list of tables whose Keys, all KeyBytes forms, are joined: List
	KeyBits                      // a table of demands on the bits of Field, and of Keys; see Key.Bits
	KeyBitNumbers                // a list of numbers of bits, 0 to 63: uint64
	KeyTable                     // a table of Keys; Set is not called
	KeyNamed                     // a table of tables with the keys that Named returns: []string
)

// Direction states which change of a key's value accepts less. Every other change accepts
// more, so the zero Direction is the careful one.
type Direction int

// The directions.
const (
	Fixed        Direction = iota // no change of it accepts less
	Grants                        // each value accepts something: less without it
	GrantsIfTrue                  // true accepts something
	Cuts                          // each value, or the table, refuses something by being there
	Floor                         // a number: higher refuses more
	Ceiling                       // a number: lower refuses more
	TimeFloor                     // a time: later refuses more
	VersionFloor                  // two numbers as text: higher refuses more
	NarrowsBits                   // demands on bits: "any" accepts more
	Loosest                       // one word, Key.Loosest, accepts most
	MaxAge                        // a duration that is always there: shorter refuses more
	OptionalAge                   // a duration that bounds something by being there: shorter refuses more
)

// Key is one key of a platform's policy table.
type Key struct {
	Name      string
	Kind      KeyKind
	Direction Direction
	Required  bool
	Want      string // what a value is, for people
	Is        func(string) bool
	Form      func(string) []byte // nil result: not of the form
	Least     int64
	Most      int64
	Field     BitField
	Keys      []Key
	// Names are the names that tables of KeyNamed may have, and Named the keys of one.
	Names []string
	Named func(name string) []Key
	// Optional marks a table that means when it is left out what an empty one means.
	Optional bool
	// Loosest is the word that accepts most, with direction Loosest.
	Loosest string
	// Implied is the TOML value that the key represents where it is left out.
	Implied any
	// Recorded marks a rule about what a leaf records of a unit, so that it refuses the
	// leaves of exactly those units that it cuts off.
	Recorded bool
	// Set puts a value into the rules. Of KeyBits it is nil: Bits is where they are.
	Set  func(r *Rules, v any)
	Bits func(r *Rules) *Bits
}

// SetField makes a [Key.Set] for values of one type.
func SetField[T any](field func(*Rules) *T) func(*Rules, any) {
	return func(r *Rules, v any) { *field(r) = v.(T) }
}

// Narrowed makes a [Key.Set] for numbers that a field of a smaller type has.
func Narrowed[T uint8 | uint16 | uint32](field func(*Rules) *T) func(*Rules, any) {
	return func(r *Rules, v any) { *field(r) = T(v.(int64)) }
}

// OneOf accepts some words.
func OneOf(words ...string) (want string, is func(string) bool) {
	return strings.Join(words, ", "), func(s string) bool {
		for _, w := range words {
			if s == w {
				return true
			}
		}
		return false
	}
}

// RevocationKeys are the keys of platforms whose vendor has revocation lists: what a
// missing list means, and how long ago documents may have been fetched, at least the day
// after which the authority fetches them again.
func RevocationKeys() []Key {
	_, is := OneOf(string(CRLRequired), string(CRLIfPresent))
	return []Key{
		{
			Name: "crl", Kind: KeyWord, Direction: Loosest, Loosest: string(CRLIfPresent),
			Want: string(CRLRequired) + " or " + string(CRLIfPresent), Is: is,
			Set: func(r *Rules, v any) { r.CRL = CRLRule(v.(string)) },
		},
		{
			Name: "checked_within", Kind: KeyDuration, Direction: OptionalAge, Least: int64(25 * time.Hour), Most: int64(8760 * time.Hour),
			Set: SetField(func(r *Rules) *time.Duration { return &r.CheckedWithin }),
		},
	}
}

// Forms of texts in policy files, for people.
const (
	WantDigest = `"sha256:" and 64 lower-case hexadecimal digits`
	WantSHA384 = `"sha384:" and 96 lower-case hexadecimal digits`
)

// Digits reads so many bytes in lower-case hexadecimal, and nil from anything else.
func Digits(s string, size int) []byte {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != size || hex.EncodeToString(b) != s {
		return nil
	}
	return b
}

// SHA256 reads a digest of 32 bytes, and SHA384 one of 48.
func SHA256(s string) []byte { return prefixedDigits(s, "sha256:", 32) }

// SHA384 reads a digest of 48 bytes.
func SHA384(s string) []byte { return prefixedDigits(s, "sha384:", 48) }

func prefixedDigits(s, prefix string, size int) []byte {
	s, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return nil
	}
	return Digits(s, size)
}

// TextForm reads text that a check accepts as its bytes.
func TextForm(is func(string) bool) func(string) []byte {
	return func(s string) []byte {
		if !is(s) {
			return nil
		}
		return []byte(s)
	}
}

// ListedChip is a [PolicyRules.ChipRefused] of platforms whose chips all have a name:
// it refuses what cut names, and what accepted does not.
func ListedChip(form func(string) []byte, rules func(Rules) (cut [][]byte, accepted List)) func(Rules, string) string {
	return func(r Rules, chip string) string {
		cut, accepted := rules(r)
		id := form(chip)
		switch {
		case id == nil && len(cut) > 0, List{Values: cut}.Accepts(id):
			return "cut_chips"
		case !accepted.Accepts(id):
			return "chips"
		}
		return ""
	}
}
