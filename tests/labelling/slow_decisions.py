"""What has been decided, slowly and obviously right."""

from clfew.labelling.state import LABEL, NONE, SKIP, UNDOABLE, UNSURE, WRONG


class Slow:
    """Keeps the events that were not undone, and recomputes all from them."""

    def __init__(self):
        self.left, self.made, self.ever = [], [], 0

    def apply(self, event):
        if event["do"] == "undo":
            undone = [each for each in self.left if each["n"] == event["of"]]
            self.left = [each for each in self.left if each["n"] != event["of"]]
            for each in undone:
                makes = each["do"] == "class" or (each["do"] == LABEL and "name" in each)
                if not (makes and self.has_images(each["class"])):
                    self.made = [other for other in self.made if other["n"] != each["n"]]
        elif event["do"] in UNDOABLE:
            self.left.append(event)
            if "name" in event or event["do"] in ("merge", "delete"):
                self.made.append(event)
                self.ever = max(self.ever, event["class"])

    def decisions(self):
        """Of each image, all that was decided: number, kind and class, in order."""
        found = {}
        for event in self.left:
            if event["do"] in (LABEL, SKIP, UNSURE):
                row = (event["n"], event["do"], event.get("class"))
                found.setdefault(event["image"], []).append(row)
            elif event["do"] == "page":
                for image, label in event["labels"].items():
                    found.setdefault(image, []).append((event["n"], LABEL, label))
                for image in event["wrong"]:
                    found.setdefault(image, []).append((event["n"], WRONG, None))
        return found

    def classes(self):
        names, became = {}, {}
        for event in self.made:
            if event["do"] in ("class", LABEL):
                names[event["class"]] = event["name"]
            elif event["class"] in names:
                if event["do"] == "rename":
                    names[event["class"]] = event["name"]
                else:
                    del names[event["class"]]
                    became[event["class"]] = event.get("into")
        return names, became

    def now(self, label, known=None):
        names, became = known or self.classes()
        while label in became:
            label = became[label]
        return label if label == NONE or label in names else None

    def has_images(self, number):
        decided = {label for rows in self.decisions().values() for _, _, label in rows}
        known = self.classes()
        return any(number in (label, self.now(label, known)) for label in decided if label is not None)

    def current(self):
        found, known = {}, self.classes()
        for image, rows in self.decisions().items():
            n, kind, label = rows[-1]
            if kind != LABEL:
                found[image] = (n, kind, None)
            elif self.now(label, known) is not None:
                found[image] = (n, kind, self.now(label, known))
        return found
