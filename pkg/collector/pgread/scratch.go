package pgread

import "sync"

// scratch holds buffers for results of which little is sent: a sample of 2,000
// statements is more than a megabyte, and most of it is like the one before.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

func borrow() []byte { return (*scratch.Get().(*[]byte))[:0] }

func giveBack(b []byte) { scratch.Put(&b) }
