// Package testnet finds addresses for programs that tests start as processes
// of their own.
package testnet

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// FreeAddress returns an address of 127.0.0.1 on whose port nobody listens. The
// port lies below those that the kernel gives to connections and to listeners
// on port 0: one of these could be taken again before the program for which it
// is meant has started, or while it is being restarted.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000))
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			tb.Fatalf("testnet: %v", err)
		}
		return address
	}
	tb.Fatal("testnet: no free port")
	return ""
}
