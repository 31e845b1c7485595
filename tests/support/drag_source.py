"""A window that is all one file, to be dragged elsewhere: `python -m tests.support.drag_source FILE`."""

import sys

from PySide6.QtCore import QMimeData, Qt, QUrl
from PySide6.QtGui import QDrag, QMouseEvent
from PySide6.QtWidgets import QApplication, QLabel

TITLE = "file manager"


class _Source(QLabel):
    def mousePressEvent(self, _event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        drag, mime = QDrag(self), QMimeData()
        mime.setUrls([QUrl.fromLocalFile(sys.argv[1])])
        drag.setMimeData(mime)
        drag.exec(Qt.DropAction.CopyAction)


if __name__ == "__main__":
    app = QApplication(sys.argv[:1])
    source = _Source(sys.argv[1])
    source.setWindowTitle(TITLE)
    source.setGeometry(1290, 700, 100, 100)
    source.show()
    app.exec()
