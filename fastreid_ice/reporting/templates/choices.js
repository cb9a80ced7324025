// Images that are chosen become rows of corrections.csv: [image, relation, other]; none if others must be chosen.
const CHOICES = {
  wrong: {
    rows: (chosen, medoid) => chosen.filter((row) => row !== medoid(row)).map((row) => [row, "different", medoid(row)]),
    needs: "Choose images of a cluster first, others than its first one.",
    done: (rows) => `${rows.length} wrong`,
  },
  split: {
    rows: (chosen) => (chosen.length === 2 ? [[chosen[0], "different", chosen[1]]] : []),
    needs: "Choose two images that are different persons.",
    done: () => "two persons",
  },
  nobody: {
    rows: (chosen) => chosen.map((row) => [row, "nobody", ""]),
    needs: "Choose images first.",
    done: (rows) => `${rows.length} without a person`,
  },
};
