package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Overview is Status with what costs some requests more: for people.
type Overview struct {
	Status
	At       time.Time     // the server's clock when it was asked
	Unstored time.Duration // age of the oldest batch that is not stored, 0 if all are
	Inflow   float64       // bytes a second that came in of late; 0 when nothing did
	Holds    []Hold        // those that keep something of this stream
	Replicas int           // servers that have the stream, by its configuration
	Behind   []string      // of these, the names of those that are away or not up to date
}

// inflowOver is the time over which Inflow is an average: long enough for
// collectors that all push once a minute.
const inflowOver = 5 * time.Minute

// Overview asks the server for all of it. The error is fault.Unavailable.
func (b *Bus) Overview(ctx context.Context) (Overview, error) {
	ctx, done := b.request(ctx)
	defer done()
	status, err := b.Status(ctx)
	if err != nil {
		return Overview{}, err
	}
	f, err := b.look(ctx)
	if err != nil {
		return Overview{}, err
	}
	o := Overview{
		Status: status, At: f.info.TimeStamp.UTC(), Unstored: f.unstored, Holds: f.holds,
		Replicas: f.info.Config.Replicas, Behind: behind(f.info.Cluster),
	}
	o.Inflow, err = b.inflow(ctx, f.info)
	return o, err
}

// inflow takes all messages for equally large. What left the stream meanwhile
// does not count, so it is too small where the window is shorter than that.
func (b *Bus) inflow(ctx context.Context, info *jetstream.StreamInfo) (float64, error) {
	state := info.State
	if state.Msgs == 0 {
		return 0, nil
	}
	over := min(inflowOver, max(time.Second, info.TimeStamp.Sub(state.FirstTime)))
	first, err := b.firstSince(ctx, info.TimeStamp.Add(-over), state.LastSeq)
	if err != nil || first > state.LastSeq {
		return 0, err
	}
	size := float64(state.Bytes) / float64(state.Msgs)
	return float64(state.LastSeq-first+1) * size / over.Seconds(), nil
}

func behind(cluster *jetstream.ClusterInfo) []string {
	if cluster == nil { // a single server
		return nil
	}
	var names []string
	for _, peer := range cluster.Replicas {
		if peer.Offline || !peer.Current {
			names = append(names, peer.Name)
		}
	}
	return names
}
