/// <reference path="../data/a/types.d.ts" />

// PocketBase runs this once per node, before it serves. The ids are written down, so that the collection and its
// fields are the same thing on every node.
migrate(
  (app) => {
    const anyone = "";
    const notes = new Collection({
      id: "pbc_notes",
      type: "base",
      name: "notes",
      listRule: anyone,
      viewRule: anyone,
      createRule: anyone,
      updateRule: anyone,
      deleteRule: anyone,
      fields: [
        { id: "text_notes_title", name: "title", type: "text", required: true },
        { id: "text_notes_slug", name: "slug", type: "text" },
        { id: "num_notes_stars", name: "stars", type: "number" },
        { id: "auto_notes_created", name: "created", type: "autodate", onCreate: true },
        { id: "auto_notes_updated", name: "updated", type: "autodate", onCreate: true, onUpdate: true },
      ],
      indexes: ["CREATE UNIQUE INDEX `idx_notes_slug` ON `notes` (`slug`) WHERE `slug` != ''"],
    });
    app.save(notes);
  },
  (app) => app.delete(app.findCollectionByNameOrId("notes")),
);
