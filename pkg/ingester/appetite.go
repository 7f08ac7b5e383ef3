package ingester

// appetite learns how many messages make a load, so that a fetch takes about
// as many as its loader stores soon. More would only wait in its hand, while
// other ingesters have nothing to do.
type appetite struct {
	most     int     // messages of one fetch
	loadRows float64 // rows of one load
	rows     float64 // of a message on average; 0 before the first
}

const (
	// A loader fetches for two loads: one could end with the fetch's last
	// message and be a small one.
	loadsPerFetch = 2

	// Some messages are asked for whatever their size: large ones come with
	// small ones among them.
	fewestMessages = 8
)

func newAppetite(most, loadRows int) *appetite {
	return &appetite{most: most, loadRows: float64(loadRows)}
}

// messages returns how many to ask for.
func (a *appetite) messages() int {
	n := fewestMessages
	if a.rows > 0 {
		n = max(n, int(min(float64(a.most), loadsPerFetch*a.loadRows/a.rows)))
	}
	return min(n, a.most)
}

// learn takes a fetch into account. The last ones weigh most, for senders
// change.
func (a *appetite) learn(rows, messages int) {
	mean := max(1, float64(rows)) / float64(messages)
	if a.rows == 0 {
		a.rows = mean
	}
	a.rows = (3*a.rows + mean) / 4
}
