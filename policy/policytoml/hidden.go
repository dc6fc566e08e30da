package policytoml

import (
	"fmt"
	"strings"
	"unicode"
)

// hidden are the characters that a reader cannot see or cannot recognise: controls,
// marks of direction and of format, characters without a width, line ends other than LF,
// private use, and code points that are no characters. Owners sign the text that they see,
// so no policy text may have one.
//
// The list is here and not taken from package unicode, whose tables grow with Unicode:
// a history is read the same by every version of this program. It is the general
// categories Cf, Co, Zl, Zp and Cc without tab and LF, and the derived property
// Default_Ignorable_Code_Point, of Unicode 15.0, and all above the third plane,
// which has no letter.
var hidden = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0x0000, Hi: 0x0008, Stride: 1}, {Lo: 0x000b, Hi: 0x001f, Stride: 1}, {Lo: 0x007f, Hi: 0x009f, Stride: 1}, // controls
		{Lo: 0x00ad, Hi: 0x00ad, Stride: 1}, {Lo: 0x034f, Hi: 0x034f, Stride: 1}, {Lo: 0x0600, Hi: 0x0605, Stride: 1},
		{Lo: 0x061c, Hi: 0x061c, Stride: 1}, {Lo: 0x06dd, Hi: 0x06dd, Stride: 1}, {Lo: 0x070f, Hi: 0x070f, Stride: 1},
		{Lo: 0x0890, Hi: 0x0891, Stride: 1}, {Lo: 0x08e2, Hi: 0x08e2, Stride: 1}, {Lo: 0x115f, Hi: 0x1160, Stride: 1},
		{Lo: 0x17b4, Hi: 0x17b5, Stride: 1}, {Lo: 0x180b, Hi: 0x180f, Stride: 1},
		{Lo: 0x200b, Hi: 0x200f, Stride: 1}, {Lo: 0x2028, Hi: 0x202e, Stride: 1}, {Lo: 0x2060, Hi: 0x206f, Stride: 1}, // direction, width, lines
		{Lo: 0x3164, Hi: 0x3164, Stride: 1},
		{Lo: 0xd800, Hi: 0xf8ff, Stride: 1}, // surrogates, private use
		{Lo: 0xfdd0, Hi: 0xfdef, Stride: 1}, {Lo: 0xfe00, Hi: 0xfe0f, Stride: 1}, {Lo: 0xfeff, Hi: 0xfeff, Stride: 1},
		{Lo: 0xffa0, Hi: 0xffa0, Stride: 1}, {Lo: 0xfff0, Hi: 0xfffb, Stride: 1}, {Lo: 0xfffe, Hi: 0xffff, Stride: 1},
	},
	R32: []unicode.Range32{
		{Lo: 0x110bd, Hi: 0x110bd, Stride: 1}, {Lo: 0x110cd, Hi: 0x110cd, Stride: 1}, {Lo: 0x13430, Hi: 0x1343f, Stride: 1},
		{Lo: 0x1bca0, Hi: 0x1bca3, Stride: 1}, {Lo: 0x1d173, Hi: 0x1d17a, Stride: 1},
		{Lo: 0x1fffe, Hi: 0x1ffff, Stride: 1}, {Lo: 0x2fffe, Hi: 0x2ffff, Stride: 1},
		{Lo: 0x3fffe, Hi: 0x10ffff, Stride: 1}, // nothing, tags, private use
	},
	LatinOffset: 4,
}

// IsHidden reports whether a reader cannot see or recognise a character.
func IsHidden(r rune) bool { return unicode.Is(hidden, r) }

// visible refuses the first character of a text that is [hidden].
func visible(text string) error {
	at := strings.IndexFunc(text, IsHidden)
	if at < 0 {
		return nil
	}
	before := text[:at]
	line := strings.Count(before, "\n") + 1
	column := len([]rune(before[strings.LastIndexByte(before, '\n')+1:])) + 1
	return Faults{{
		Path: fmt.Sprintf("line %d, column %d", line, column), Rule: "character", Got: fmt.Sprintf("%U", []rune(text[at:])[0]),
		Want: "characters that are seen: no controls, marks of direction or format, or private use",
	}}
}
