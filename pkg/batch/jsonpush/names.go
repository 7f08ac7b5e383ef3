package jsonpush

import "hash/maphash"

// names holds the names of the open objects, so that one that comes twice is
// found. The objects lie within each other, so what came last goes first, and
// one list and one hash table do for all of them. A name costs its text and at
// most 30 bytes or so, whatever names the sender has found.
type names struct {
	text   []byte   // back to back, without escapes
	ends   []int    // of each name in text
	hashes []uint32 // of each name and its object
	slots  []uint32 // of the table: a name's number from 1, or 0; at most half of them used
	seed   maphash.Seed
}

// len returns how many names there are, which is the number of the next.
func (n *names) len() int { return len(n.ends) }

func (n *names) at(i int) []byte { return n.text[n.start(i):n.ends[i]] }

func (n *names) start(i int) int {
	if i == 0 {
		return 0
	}
	return n.ends[i-1]
}

// add adds a raw name to the innermost object, whose names have the numbers
// from first on, and returns it without escapes, or false if the object has it.
func (n *names) add(raw []byte, first int) ([]byte, bool) {
	if 2*len(n.ends) >= len(n.slots) {
		n.grow()
	}
	n.text = appendUnquoted(n.text, raw)
	n.ends = append(n.ends, len(n.text))
	number := len(n.ends) - 1
	name := n.at(number)
	// The object is in the hash: else the same name at every depth would be one
	// long chain.
	hash := uint32((maphash.Bytes(n.seed, name) ^ uint64(first)) * 0x9e3779b97f4a7c15 >> 32)
	slot := n.slot(hash, func(i int) bool { return i >= first && string(n.at(i)) == string(name) })
	if n.slots[slot] != 0 {
		n.text, n.ends = n.text[:n.start(number)], n.ends[:number]
		return nil, false
	}
	n.slots[slot] = uint32(number + 1)
	n.hashes = append(n.hashes, hash)
	return name, true
}

// drop takes the names from first on away. They are the last ones that were
// put into the table, so nothing else was moved on by them.
func (n *names) drop(first int) {
	if first == len(n.ends) { // of an array always
		return
	}
	start := n.start(first)
	for i := len(n.ends) - 1; i >= first; i-- {
		n.slots[n.slot(n.hashes[i], func(other int) bool { return other == i })] = 0
	}
	n.ends, n.hashes = n.ends[:first], n.hashes[:first]
	n.text = n.text[:start]
}

// slot returns where the name with that hash lies that is asked for, or else
// the empty slot where it would lie.
func (n *names) slot(hash uint32, is func(i int) bool) int {
	mask := uint32(len(n.slots) - 1)
	for at := hash & mask; ; at = (at + 1) & mask {
		if number := n.slots[at]; number == 0 || n.hashes[number-1] == hash && is(int(number-1)) {
			return int(at)
		}
	}
}

func (n *names) grow() {
	if n.slots == nil {
		n.seed = maphash.MakeSeed()
	}
	n.slots = make([]uint32, max(32, 2*len(n.slots)))
	for i, hash := range n.hashes {
		n.slots[n.slot(hash, func(int) bool { return false })] = uint32(i + 1)
	}
}
