import asyncio

from room import Room

from ipcbus.web.testing import ServiceTest


async def talk() -> None:
    async with ServiceTest(Room()) as test:
        ada = await test.connect(query="name=ada")
        bob = await test.connect(query="name=bob")
        assert ada.take() == [{"joined": "bob"}]
        await ada.send({"text": "hello"})
        assert bob.take() == [{"from": "ada", "text": "hello"}]
        assert ada.take() == []


def test_everybody_else_hears_it() -> None:
    asyncio.run(talk())
