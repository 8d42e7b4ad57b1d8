package linear

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// ErrNotLinear is returned for a history that no single disk could have produced.
var ErrNotLinear = errors.New("no single disk could have answered so")

// checkTime bounds the search for one block's order.
const checkTime = time.Minute

// Check judges the history, which has ended. On failure it leaves pictures of the
// blocks' histories, HTML, in dir (at most four) and names them in its error.
func (h *History) Check(dir string) error {
	list, errs := h.registers()
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	pictures := 0
	for _, r := range list {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			info, err := r.check()
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if pictures++; pictures <= 4 {
				path := filepath.Join(dir, fmt.Sprintf("qrbd-linear-%d-block-%d.html", os.Getpid(), r.block))
				err = fmt.Errorf("%w; see %s", err, path)
				if e := porcupine.VisualizePath(r.model(), info, path); e != nil {
					err = errors.Join(err, e)
				}
			}
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *register) check() (porcupine.LinearizationInfo, error) {
	result, info := porcupine.CheckOperationsVerbose(r.model(), r.ops, checkTime)
	switch result {
	case porcupine.Ok:
		return info, nil
	case porcupine.Illegal:
		return info, fmt.Errorf("block %d, %d operations: %w", r.block, len(r.ops), ErrNotLinear)
	case porcupine.Unknown:
	}
	return info, fmt.Errorf("block %d, %d operations: not decided within %v", r.block, len(r.ops), checkTime)
}
