package volume

import (
	"log/slog"
	"testing"

	"github.com/qrbd/qrbd/replica"
)

// TestEventsAreNotLostSilently: whoever is told of events, and was stuck for too many
// of them, learns how many it was not told, before the rest.
func TestEventsAreNotLostSilently(t *testing.T) {
	var told []Event
	v := &Volume{log: slog.New(slog.DiscardHandler), tell: make(chan struct{}, 1)}
	v.opt.Name, v.opt.OnEvent = "crm", func(e Event) { told = append(told, e) }
	note := func(n int) {
		told = nil
		for range n {
			v.mu.Lock()
			v.note(replica.Event{Field: "role"})
			v.mu.Unlock()
		}
		v.tellAll()
	}
	note(eventsMax)
	if len(told) != eventsMax || told[0].Field != "role" {
		t.Errorf("%d told, the first %+v", len(told), told[0])
	}
	note(eventsMax + 17)
	if len(told) != eventsMax+1 || told[0].Field != EventsLost || told[0].New != "17" || told[0].Volume != "crm" || told[1].Field != "role" {
		t.Errorf("%d told, the first %+v", len(told), told[0])
	}
	if note(1); len(told) != 1 {
		t.Errorf("told %+v", told)
	}
}
